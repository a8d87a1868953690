"""Raw data to splits: what is carved, what is refused and in which words, telling apart, batching."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from autocompress.config import DataConfig
from autocompress.errors import UsageError
from autocompress.recover import data as data_module
from autocompress.recover.data import (
    DataSplits,
    Split,
    batches,
    data_digest,
    split_data,
)

Pair = tuple[Tensor, Tensor]


def config(**values: Any) -> DataConfig:
    return DataConfig.model_validate(values)


def split(raw: Any, *, metric: str = "accuracy", seed: int = 0, kind: str = "auto", **values: Any) -> DataSplits:
    return split_data(raw, config=config(**values), metric=metric, seed=seed, kind=kind)


def numbered(count: int, classes: int = 2) -> Pair:
    """Inputs [count, 1] that hold their own index, and balanced labels."""
    return torch.arange(float(count)).view(-1, 1), torch.arange(count) % classes


def indices(part: Split) -> list[int]:
    return [int(i) for i in part.inputs[0].flatten()]


# Whole splits and carving --------------------------------------------------------------------------


def test_three_given_splits_stay_as_they_are(tiny_data: dict[str, Pair]) -> None:
    splits = split(tiny_data)
    assert [len(part) for _, part in splits.items()] == [256, 64, 64]
    assert (splits.task, splits.classes, splits.notes) == ("classification", 4, ())
    assert torch.equal(splits.val.inputs[0], tiny_data["val"][0])
    assert splits.train.targets.dtype == torch.int64


def test_what_is_missing_is_carved_from_train_without_overlap() -> None:
    splits = split({"train": numbered(100)}, val_share=0.2, test_share=0.1)
    parts = [indices(part) for _, part in splits.items()]
    assert [len(part) for part in parts] == [70, 20, 10]
    assert sorted(itertools.chain(*parts)) == list(range(100))
    assert splits.notes == (
        "val: there was none, 20 of the 100 samples of train were taken for it by the seed",
        "test: there was none, 10 of the 100 samples of train were taken for it by the seed",
    )


def test_only_what_is_missing_is_carved() -> None:
    splits = split({"train": numbered(100), "test": numbered(7)})
    assert [len(part) for _, part in splits.items()] == [90, 10, 7]
    assert indices(splits.test) == list(range(7))
    assert len(splits.notes) == 1


def test_the_seed_decides_what_is_carved() -> None:
    raw = {"train": numbered(100)}
    assert indices(split(raw, seed=3).val) == indices(split(raw, seed=3).val)
    assert indices(split(raw, seed=3).val) != indices(split(raw, seed=4).val)


@pytest.mark.parametrize("seed", range(10))
def test_carving_keeps_the_proportions_of_the_classes(seed: int) -> None:
    targets = torch.cat([torch.full((n,), label) for label, n in enumerate((100, 50, 20, 1))])
    inputs = torch.arange(171.0).view(-1, 1)
    splits = split({"train": (inputs, targets)}, seed=seed, val_share=0.2, test_share=0.1)
    counts = {name: torch.bincount(part.targets, minlength=4).tolist() for name, part in splits.items()}
    for label, total in enumerate((100, 50, 20)):
        assert abs(counts["val"][label] - 0.2 * total) <= 1
        assert abs(counts["test"][label] - 0.1 * total) <= 1
    assert counts["train"][3] == 1  # the only one of its class stays where it can be learned


def test_the_carved_validation_is_limited_and_the_rest_stays_in_train() -> None:
    splits = split({"train": numbered(100)}, val_share=0.5, max_val=8)
    assert [len(part) for _, part in splits.items()] == [82, 8, 10]


def test_given_validation_is_limited_with_a_note_and_stays_balanced() -> None:
    raw = {"train": numbered(40, 4), "val": numbered(100, 4), "test": numbered(9, 4)}
    splits = split(raw, max_val=20)
    assert torch.bincount(splits.val.targets).tolist() == [5, 5, 5, 5]
    assert splits.notes == ("val: 20 of 100 samples are used, chosen by the seed (data.max_val)",)
    assert len(splits.test) == 9


def test_the_worked_example_of_the_spread_order_holds() -> None:
    order = data_module._spread_order(torch.tensor([0, 0, 0, 0, 1, 1]), True, np.random.default_rng(0))
    assert torch.tensor([0, 0, 0, 0, 1, 1])[torch.from_numpy(order)].tolist() == [0, 1, 0, 0, 1, 0]


def test_too_few_samples_to_carve_from_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"train has 2 samples, too few to carve val and test from it; give them"):
        split({"train": numbered(2)})
    with pytest.raises(UsageError, match=r"lower data\.val_share and data\.test_share"):
        split({"train": numbered(100)}, val_share=0.6, test_share=0.5)


# Forms of input ------------------------------------------------------------------------------------


class Rows(Dataset[Any]):
    """A map-style data set made of a function."""

    def __init__(self, read: Callable[[int], Any], count: int = 20) -> None:
        self.read, self.count = read, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


@pytest.mark.parametrize("as_target", [int, torch.tensor, np.int32, lambda t: torch.tensor(t, dtype=torch.uint8)])
def test_a_dataset_becomes_the_tensors_it_yields(as_target: Callable[[int], Any]) -> None:
    rows = Rows(lambda i: (torch.full((1, 2, 2), float(i)), as_target(i % 2)))
    splits = split({"train": rows, "val": Subset(rows, [1, 0, 3]), "test": rows})
    assert splits.train.inputs[0].shape == (20, 1, 2, 2)
    assert splits.val.inputs[0][:, 0, 0, 0].tolist() == [1, 0, 3]
    assert splits.val.targets.tolist() == [1, 0, 1]
    assert splits.val.targets.dtype == torch.int64
    assert splits.notes[0].startswith("train: the data set was read once; its random transforms")


def test_a_tensor_dataset_is_a_pair() -> None:
    splits = split({"train": TensorDataset(*numbered(20)), "val": numbered(4), "test": numbered(4)})
    assert indices(splits.train) == list(range(20))
    assert splits.notes == ()


def test_several_inputs_come_as_a_tuple() -> None:
    ids, mask, targets = torch.arange(20).view(10, 2), torch.ones(10, 2), torch.arange(10) % 2
    from_pair = split({"train": ((ids, mask), targets)})
    from_rows = split({"train": Rows(lambda i: ((ids[i], mask[i]), targets[i]), 10)})
    for splits in (from_pair, from_rows):
        assert [t.dtype for t in splits.train.inputs] == [torch.int64, torch.float32]
        assert [tuple(t.shape) for t in splits.train.inputs] == [(8, 2), (8, 2)]
    assert data_digest(from_pair) == data_digest(from_rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float16])
def test_inputs_keep_their_dtype(dtype: type) -> None:
    splits = split({"train": (np.ones((20, 3), dtype), np.arange(20) % 2)})
    assert splits.train.inputs[0].numpy().dtype == dtype


def test_float64_inputs_are_kept_with_a_note() -> None:
    splits = split({"train": (np.ones((20, 3)), np.arange(20) % 2)})
    assert splits.train.inputs[0].dtype == torch.float64
    assert splits.notes[-3].startswith("inputs are float64")


def test_read_only_and_reversed_arrays_and_lists_are_taken() -> None:
    locked = np.arange(20, dtype=np.float32).reshape(-1, 1)
    locked.flags.writeable = False
    targets = np.arange(20)[::-1] % 2
    splits = split({"train": (locked, targets), "val": ([[1.5], [2.5]], [0, 1]), "test": numbered(2)})
    assert splits.train.targets[:2].tolist() == [1, 0]
    assert splits.val.inputs[0].dtype == torch.float32


def test_bool_labels_are_two_classes() -> None:
    splits = split({"train": (torch.ones(20, 1), torch.arange(20) % 2 == 0)})
    assert (splits.classes, splits.train.targets.dtype) == (2, torch.int64)


def test_regression_is_chosen_by_the_metric_or_by_float_targets() -> None:
    whole = split({"train": numbered(20)}, metric="mse")
    assert (whole.task, whole.classes, whole.train.targets.dtype) == ("regression", None, torch.float32)
    real = split({"train": (torch.ones(20, 1), torch.rand(20, 3, dtype=torch.float64))}, metric="mine:error")
    assert (real.task, real.train.targets.dtype, real.train.targets.shape) == ("regression", torch.float32, (16, 3))


def test_several_labels_are_told_by_bool_targets_or_by_rows_that_are_not_one_hot() -> None:
    labels = (torch.arange(40).view(20, 2) % 3 == 0).long()
    for metric, targets in (("f1", labels), ("f1", labels.float()), ("mine:score", labels.bool())):
        splits = split({"train": (torch.ones(20, 1), targets)}, metric=metric)
        assert (splits.task, splits.classes, splits.train.targets.dtype) == ("multilabel", None, torch.bool)
    told = split({"train": (torch.ones(20, 1), torch.eye(20).long())}, kind="multilabel")
    assert told.train.targets.sum() == 16  # four rows were carved
    assert split({"train": (torch.ones(20, 1), labels)}, metric="mae").task == "regression"
    with pytest.raises(
        UsageError, match=r"zeros and ones \[n, labels\], but the targets of train are torch.int64 \[20\]"
    ):
        split({"train": numbered(20)}, kind="multilabel")


@pytest.mark.parametrize("shape", [(20, 1), (20, 2), (20, 4, 4)], ids=["column", "rows", "pixels"])
def test_a_metric_of_ones_own_needs_one_label_per_sample_too(shape: tuple[int, ...]) -> None:
    targets = torch.arange(20).view(20, *[1] * (len(shape) - 1)).expand(shape) % 3
    with pytest.raises(UsageError, match=r"one class label per sample, targets \[n\], but train has \[20, .*argmax"):
        split({"train": (torch.ones(20, 1), targets)}, metric="mine:score")


def test_a_sample_is_spread_evenly_from_the_first_to_the_last() -> None:
    four = whole(10).sample(4)
    assert (indices(four), four.targets.tolist()) == ([0, 3, 6, 9], [0, 1, 0, 1])
    assert whole(7).spread(5)[0].flatten().tolist() == [0, 1, 3, 4, 6]
    assert indices(whole(3).sample(8)) == [0, 1, 2]
    assert indices(whole(3).sample(1)) == [0]


# What is refused -----------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.ones(1), 0


GOOD = numbered(20)
X, Y = GOOD


def holed(value: float) -> Tensor:
    inputs = X.clone()
    inputs[4] = value
    inputs[7] = value
    return inputs


REFUSED: list[tuple[Any, str]] = [
    (GOOD, r'data must be a mapping like \{"train": \.\.\., "val": \.\.\.\}, got a tuple; put the data under "train"'),
    (None, "data must be a mapping .* got None"),
    ({"train": GOOD, "validation": GOOD}, "unknown split 'validation' .*; did you mean 'val'?"),
    ({"trian": GOOD}, "unknown split 'trian' .*; did you mean 'train'?"),
    ({"train": GOOD, "zzz": GOOD}, "unknown split 'zzz' in the data; known are train, val and test; remove it"),
    ({"val": GOOD}, 'the data has no "train"; give it as a Dataset or as a pair'),
    ({"train": X}, r"train must be a Dataset of \(input, target\) or a pair \(inputs, targets\), got a Tensor"),
    ({"train": {"x": X, "y": Y}}, "train must be a Dataset .* got a dict"),
    ({"train": "digits"}, "train must be a Dataset .* got a str"),
    ({"train": (X, Y, Y)}, "train must be a Dataset .* got a tuple of 3; put several inputs into one tuple"),
    ({"train": DataLoader(TensorDataset(X, Y))}, r"train is a DataLoader; give its \.dataset"),
    ({"train": Endless()}, "train has no length; give a map-style Dataset"),
    ({"train": (X[:0], Y[:0])}, "train has no samples; give at least one or leave train out"),
    ({"train": GOOD, "val": Rows(lambda i: (X[i], 0), 0)}, "val has no samples; give at least one or leave val out"),
    ({"train": (X, Y[:19])}, "train has 19 targets but 20 inputs; every input needs one target"),
    ({"train": ((X, X[:5]), Y)}, "train has 20 targets but 5, 20 inputs"),
    ({"train": ((), Y)}, "train has an empty tuple of inputs"),
    (
        {"train": (holed(torch.nan), Y)},
        "inputs of train hold NaN or infinite values in 2 of 20 samples, first in sample 4",
    ),
    (
        {"train": GOOD, "test": (holed(-torch.inf), Y)},
        "inputs of test hold NaN or infinite .* first in sample 4; clean",
    ),
    ({"train": (np.array([None] * 20), Y)}, "the inputs of train must be numbers in one tensor or array, got object"),
    ({"train": (X, np.array(["cat"] * 20))}, "the targets of train must be numbers in one tensor or array, got <U3"),
    ({"train": ([[1.0], [2.0, 3.0]], [0, 1])}, "the inputs of train must be numbers .* got a list"),
    ({"train": (X, 3)}, r"the targets of train must be real numbers \[n, \.\.\.\], got torch.int64 \[\]"),
    ({"train": (X * 1j, Y)}, "the inputs of train must be real numbers .* got torch.complex64"),
    (
        {"train": (X, Y.float())},
        "accuracy needs integer class labels, but the targets of train are torch.float32; .* mse",
    ),
    ({"train": GOOD, "val": (X, Y.float())}, "the targets of val are torch.float32 but those of train are integers"),
    (
        {"train": (X, torch.eye(20).long())},
        r"targets \[n\], but train has \[20, 20\]; for one-hot rows give their argmax",
    ),
    ({"train": (X, Y - 1)}, "targets of train must be class labels from 0, got -1; renumber the classes"),
    ({"train": (X, Y * 0 + 3)}, "train holds only the class 3; at least two classes are needed"),
    ({"train": GOOD, "test": (X, Y * 4)}, "test holds the class 4 but the highest of train is 1"),
    (
        {"train": GOOD, "val": (torch.ones(20, 2), Y)},
        r"inputs of val are float32 \[2\] per sample but those of train float32 \[1\]",
    ),
    (
        {"train": GOOD, "val": (X.double(), Y)},
        r"inputs of val are float64 \[1\] per sample but those of train float32 \[1\]",
    ),
    ({"train": GOOD, "val": ((X, X), Y)}, "val has 2 inputs per sample but train 1"),
    (
        {"train": Rows(lambda i: {"x": X[i]})},
        r"train sample 0 must be \(input, target\), got a dict; put several inputs",
    ),
    ({"train": Rows(lambda i: (X[i], X[i], 0))}, r"train sample 0 must be \(input, target\), got a tuple of 3"),
    ({"train": Rows(lambda i: (X[i], "cat"))}, "train sample 0 must hold tensors or numbers, got a Tensor, a str"),
    (
        {"train": Rows(lambda i: (torch.ones(1 + i // 3), i % 2))},
        r"train sample 3 has the shape \[2\], sample 0 has \[1\]",
    ),
    (
        {"train": Rows(lambda i: (X[i] if i < 3 else X[i].double(), i % 2))},
        r"train sample 3 holds torch.float64 where sample 0 holds torch.float32; convert all samples",
    ),
    (
        {"train": Rows(lambda i: ((X[i],) * (1 + i // 3), i % 2))},
        r"train sample 3 has 2 inputs, sample 0 has 1; give all samples as many",
    ),
    ({"train": Rows(lambda i: (X[i], 1 // (2 - i)))}, r"train sample 2 could not be read \(ZeroDivisionError: .*\)"),
    ({"train": TensorDataset(X, X, Y)}, "train must be a Dataset .* got a tuple"),
]


@pytest.mark.parametrize(("raw", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_data_that_cannot_be_used_is_refused_in_one_sentence(raw: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        split(raw)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # the next step follows


def test_targets_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match="the targets of train hold NaN or infinite values in 2 of 20 samples"):
        split({"train": (X, holed(torch.inf))}, metric="mse")


def test_a_picture_is_not_silently_taken_as_bytes() -> None:
    from PIL import Image

    rows = Rows(lambda i: (Image.new("RGB", (4, 4)), i % 2))
    with pytest.raises(UsageError, match="must hold tensors or numbers, got a Image, a int; convert them"):
        split({"train": rows})


def test_augmenting_what_is_no_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r'data.augment = "hflip" needs images .* got \[20, 1\]; set it to "none"'):
        split({"train": GOOD}, augment="hflip")


def test_a_data_set_larger_than_memory_is_refused_before_it_is_read() -> None:
    huge = torch.empty(1).expand(10**6)
    with pytest.raises(UsageError, match=r"train needs 400000\.0 GB in memory, this machine has"):
        split({"train": Rows(lambda i: (huge, 0), 10**8)})


# Telling data apart --------------------------------------------------------------------------------


def test_the_digest_sees_every_value_dtype_and_shape(tiny_data: dict[str, Pair]) -> None:
    splits = split(tiny_data)
    inputs, targets = splits.val.inputs[0], splits.val.targets
    nudged, relabelled = inputs.clone(), targets.clone()
    nudged[-1, 0, -1, -1] += 1e-6
    relabelled[0] += 1
    variants = [
        splits,
        replace(splits, val=Split(inputs=(nudged,), targets=targets)),
        replace(splits, val=Split(inputs=(inputs,), targets=relabelled)),
        replace(splits, val=Split(inputs=(inputs.view(64, 1, 64),), targets=targets)),
        replace(splits, val=Split(inputs=(inputs.view(torch.int32),), targets=targets)),
        replace(splits, val=splits.test, test=splits.val),
    ]
    assert len({data_digest(v) for v in variants}) == len(variants)
    assert data_digest(split(tiny_data)) == data_digest(splits)
    assert len(data_digest(splits)) == 16


# Batching ------------------------------------------------------------------------------------------


def take(count: int, part: Split, size: int, seed: int = 0) -> list[Tensor]:
    source = batches(part, size, torch.Generator().manual_seed(seed))
    return [next(source) for _ in range(count)]


def whole(count: int) -> Split:
    inputs, targets = numbered(count)
    return Split(inputs=(inputs,), targets=targets)


def test_an_epoch_is_a_permutation_and_the_next_one_another() -> None:
    drawn = take(4, whole(6), 3)
    first, second = torch.cat(drawn[:2]), torch.cat(drawn[2:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(6))
    assert first.tolist() != second.tolist()


def test_the_rest_of_an_epoch_is_left_out() -> None:
    drawn = take(6, whole(10), 4)
    assert {len(index) for index in drawn} == {4}
    for epoch in range(3):
        assert len(set(torch.cat(drawn[2 * epoch : 2 * epoch + 2]).tolist())) == 8


def test_a_split_smaller_than_a_batch_is_one_batch() -> None:
    drawn = take(3, whole(5), 64)
    assert [sorted(index.tolist()) for index in drawn] == [list(range(5))] * 3


def test_batches_depend_on_the_generator_alone() -> None:
    assert torch.equal(torch.stack(take(5, whole(9), 3)), torch.stack(take(5, whole(9), 3)))
    assert not torch.equal(torch.stack(take(5, whole(9), 3)), torch.stack(take(5, whole(9), 3, seed=1)))


def test_batches_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="above 0, got 0 and 9"):
        take(1, whole(9), 0)
