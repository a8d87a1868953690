"""The data a study works on: three splits of tensors, checked once, then batched.

Takes what a data factory or a user hands over (`split_data`; reading it is `recover/read.py`), carves
what is missing from train and says so. It does not fetch data (`zoo/datasets.py`) and does not change
what the artifact will see: inputs keep their dtype and values, and only `recover/augment.py` changes them,
in training alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autocompress.config import ERROR_METRICS, DataConfig, is_builtin_metric
from autocompress.errors import UsageError
from autocompress.recover.read import Split as Split  # a name of this module too
from autocompress.recover.read import read_splits

Task = Literal["classification", "multilabel", "regression"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSplits:
    """What a study trains on, selects on and finally tests on.

    Attributes:
        notes: what was carved or limited, one sentence each, for the report.
        task: decides the loss.
        classes: largest label of train + 1; None for other tasks.
    """

    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()
    task: Task = "classification"
    classes: int | None = None

    def items(self) -> tuple[tuple[str, Split], ...]:
        """(name, split) in the order train, val, test."""
        return (("train", self.train), ("val", self.val), ("test", self.test))


def split_data(raw: Any, *, config: DataConfig, metric: str, seed: int, kind: str = "auto") -> DataSplits:
    """Checked tensors for train, val and test from what a data factory returned.

    Args:
        raw: mapping with `train`, and perhaps `val` and `test`; each is a map-style Dataset of (input, target) or a
            pair (inputs, targets) of tensors or arrays. Inputs may be a tuple of tensors.
        config: shares to carve, the limit of val, and the augmentation the inputs must allow.
        metric: with integer targets, "mse" and "mae" mean regression and everything else classification.
        kind: what the targets are, as in `task.kind`. With "auto" they are several labels per sample if they are bool
            [n, labels], or zeros and ones [n, labels] for a built-in metric of classes with rows that are not one-hot.
        seed: of the carving and of the choice of validation samples.
    Raises:
        UsageError: in one sentence, the first thing that is wrong with the data.
    """
    notes: list[str] = []
    splits = read_splits(raw, notes)
    task = _task(splits["train"].targets, metric, kind)
    splits = {name: _with_targets(name, split, task, metric) for name, split in splits.items()}
    for name, split in splits.items():
        _check_finite(name, split)
        _check_alike(name, split, splits["train"])
    if any(tensor.dtype == torch.float64 for tensor in splits["train"].inputs):
        notes.append(
            "inputs are float64, so the artifact takes float64 and the model must convert them; float32 is faster"
        )
    classes = _check_classes(splits) if task == "classification" else None
    _check_augment(splits["train"], config.augment)
    generator = np.random.default_rng(seed)
    splits = _carve(splits, config, classes is not None, generator, notes)
    if len(splits["val"]) > config.max_val:
        notes.append(
            f"val: {config.max_val} of {len(splits['val'])} samples are used, chosen by the seed (data.max_val)"
        )
        order = _spread_order(splits["val"].targets, classes is not None, generator)
        splits["val"] = splits["val"].take(_sorted(order[: config.max_val]))
    return DataSplits(**splits, notes=tuple(notes), task=task, classes=classes)


# Checking ------------------------------------------------------------------------------------------


def _task(targets: Tensor, metric: str, kind: str) -> Task:
    if kind != "auto":
        return kind  # type: ignore[return-value]  # the study file knows no others
    if metric in ERROR_METRICS:
        return "regression"
    if targets.ndim == 2 and (targets.dtype == torch.bool or (is_builtin_metric(metric) and _are_labels(targets))):
        return "multilabel"
    return "regression" if targets.is_floating_point() else "classification"


def _are_labels(targets: Tensor) -> bool:
    """Zeros and ones [n, labels] that are no one-hot classes."""
    rows = targets.float()
    return bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) != 1).any())


def _with_targets(name: str, split: Split, task: Task, metric: str) -> Split:
    targets = split.targets
    if task == "multilabel":
        if targets.ndim != 2 or not bool(((targets == 0) | (targets == 1)).all()):
            raise UsageError(
                f"several labels per sample must be zeros and ones [n, labels], but the targets of {name} are "
                f"{targets.dtype} {list(targets.shape)}"
            )
        return replace(split, targets=targets.bool())
    if task == "regression":
        if is_builtin_metric(metric) and metric not in ERROR_METRICS:
            raise UsageError(
                f"{metric} needs integer class labels, but the targets of {name} are {targets.dtype}; "
                "convert them, or set task.metric to mse"
            )
        return replace(split, targets=targets.float())
    if targets.is_floating_point():
        raise UsageError(f"the targets of {name} are {targets.dtype} but those of train are integers; use one dtype")
    if targets.ndim != 1:
        raise UsageError(
            f"classification needs one class label per sample, targets [n], but {name} has {list(targets.shape)}; "
            'for one-hot rows give their argmax, for several labels set task.kind to "multilabel"'
        )
    return replace(split, targets=targets.long())


def _check_finite(name: str, split: Split) -> None:
    for what, tensor in (*(("inputs", t) for t in split.inputs), ("targets", split.targets)):
        # One sum is far cheaper than a mask; only a suspicious one is looked at in full.
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
            continue
        rows = (~torch.isfinite(tensor)).flatten(1).any(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
        if count := int(rows.sum()):
            raise UsageError(
                f"the {what} of {name} hold NaN or infinite values in {count} of {len(rows)} samples, first in sample "
                f"{int(rows.nonzero()[0])}; clean them first"
            )


def _check_alike(name: str, split: Split, train: Split) -> None:
    if len(split.inputs) != len(train.inputs):
        raise UsageError(
            f"{name} has {len(split.inputs)} inputs per sample but train {len(train.inputs)}; use one form"
        )
    pairs = [("inputs", a, b) for a, b in zip(split.inputs, train.inputs, strict=True)]
    for what, mine, other in (*pairs, ("targets", split.targets, train.targets)):
        if mine.shape[1:] != other.shape[1:] or mine.dtype != other.dtype:
            raise UsageError(
                f"the {what} of {name} are {_short(mine)} per sample but those of train {_short(other)}; "
                "make them alike"
            )


def _check_classes(splits: Mapping[str, Split]) -> int:
    for name, split in splits.items():
        if (lowest := int(split.targets.min())) < 0:
            raise UsageError(f"the targets of {name} must be class labels from 0, got {lowest}; renumber the classes")
    train = splits["train"].targets
    if bool((train == train.flatten()[0]).all()):
        raise UsageError(f"train holds only the class {int(train.flatten()[0])}; at least two classes are needed")
    classes = int(train.max()) + 1
    for name, split in splits.items():
        if (highest := int(split.targets.max())) >= classes:
            raise UsageError(
                f"{name} holds the class {highest} but the highest of train is {classes - 1}; train cannot teach it"
            )
    return classes


def _check_augment(train: Split, kind: str) -> None:
    if kind != "none" and (len(train.inputs) != 1 or train.inputs[0].ndim != 4):
        shapes = ", ".join(str(list(t.shape)) for t in train.inputs)
        raise UsageError(
            f'data.augment = "{kind}" needs images [n, channels, height, width], got {shapes}; set it to "none"'
        )


# Carving -------------------------------------------------------------------------------------------


def _carve(
    splits: dict[str, Split], config: DataConfig, stratify: bool, generator: np.random.Generator, notes: list[str]
) -> dict[str, Split]:
    train, total = splits["train"], len(splits["train"])
    wanted = {"val": min(config.max_val, _share(total, config.val_share)), "test": _share(total, config.test_share)}
    wanted = {name: count for name, count in wanted.items() if name not in splits}
    if not wanted:
        return splits
    left = total - sum(wanted.values())
    if left < 1:
        raise UsageError(
            f"train has {total} samples, too few to carve {' and '.join(wanted)} from it; give them, or lower "
            "data.val_share and data.test_share"
        )
    order, start = _spread_order(train.targets, stratify, generator), 0
    carved = dict(splits)
    for name, count in wanted.items():
        carved[name] = train.take(_sorted(order[start : start + count]))
        notes.append(f"{name}: there was none, {count} of the {total} samples of train were taken for it by the seed")
        start += count
    carved["train"] = train.take(_sorted(order[start:]))
    return carved


def _share(total: int, share: float) -> int:
    return max(1, round(total * share))


def _spread_order(targets: Tensor, stratify: bool, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """A random order of which every stretch holds the classes in their proportions, to within one sample.

    Sample r of the c in its class gets the key (r + 0.5) / c: with 4 of class A and 2 of class B the keys are
    A .125 .375 .625 .875, B .25 .75, so the order is A B A A B A.
    """
    shuffled = generator.permutation(len(targets))
    if not stratify or targets.ndim != 1:
        return shuffled
    labels = targets.numpy()[shuffled]
    counts = np.bincount(labels)
    by_class = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])[labels[by_class]]
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - starts
    return shuffled[np.argsort((rank + 0.5) / counts[labels], kind="stable")]


def _sorted(index: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.sort(index))


# Telling data apart --------------------------------------------------------------------------------


def data_digest(splits: DataSplits) -> str:
    """Hash of all values, dtypes and shapes in their order; equal digests mean equal data. 0.4 s for 220 MB."""
    digest = hashlib.sha256(f"{splits.task} {splits.classes}".encode())
    for name, split in splits.items():
        for tensor in (*split.inputs, split.targets):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# Batching ------------------------------------------------------------------------------------------


def batches(split: Split, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless indices [batch_size] of shuffled minibatches; every epoch is a new order.

    The rest of an epoch that fills no batch is left out, since a batch of one breaks batch norm; a split smaller
    than a batch is one batch.

    Raises:
        ValueError: `batch_size` below 1, or no samples.
    """
    if batch_size < 1 or len(split) == 0:
        raise ValueError(f"batches need a size and samples above 0, got {batch_size} and {len(split)}")
    size = min(batch_size, len(split))
    while True:
        order = torch.randperm(len(split), generator=generator)
        yield from order[: len(split) // size * size].view(-1, size).unbind()


def _short(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])}"
