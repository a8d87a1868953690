"""The data a study works on: three splits of tensors, checked once, then stored, shared and batched.

Takes what a data factory or a user hands over (`split_data`), carves what is missing from train and
says so. It does not fetch data (`zoo/datasets.py`) and does not change what the artifact will see:
inputs keep their dtype and values, and only `augment` changes them, in training alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from autocompress.config import BUILTIN_METRICS, DataConfig
from autocompress.errors import UsageError

Task = Literal["classification", "regression"]
Augment = Literal["none", "hflip", "shift", "hflip+shift"]

SPLITS = ("train", "val", "test")
FILE_NAME = "data.safetensors"
_SPLIT_ALIASES = {
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "training": "train",
    "testing": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Samples as tensors.

    Attributes:
        inputs: one tensor [n, ...] per input of the model.
        targets: int64 class labels [n] (classification), or float32 [n, ...] (regression).
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor) -> Split:
        """The samples at `index`, copied."""
        return Split(inputs=tuple(t[index] for t in self.inputs), targets=self.targets[index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSplits:
    """What a study trains on, selects on and finally tests on.

    Attributes:
        notes: what was carved or limited, one sentence each, for the report.
        task: decides the loss.
        classes: largest label of train + 1; None for regression.
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


def split_data(raw: Any, *, config: DataConfig, metric: str, seed: int) -> DataSplits:
    """Checked tensors for train, val and test from what a data factory returned.

    Args:
        raw: mapping with `train`, and perhaps `val` and `test`; each is a map-style Dataset of (input, target) or a
            pair (inputs, targets) of tensors or arrays. Inputs may be a tuple of tensors.
        config: shares to carve, the limit of val, and the augmentation the inputs must allow.
        metric: with integer targets, "mse" means regression and everything else classification.
        seed: of the carving and of the choice of validation samples.
    Raises:
        UsageError: in one sentence, the first thing that is wrong with the data.
    """
    notes: list[str] = []
    splits = {name: _read_split(name, value, notes) for name, value in _named_splits(raw).items()}
    task = _task(splits["train"].targets, metric)
    splits = {name: _with_targets(name, split, task, metric) for name, split in splits.items()}
    for name, split in splits.items():
        _check_finite(name, split)
        _check_alike(name, split, splits["train"])
    if any(tensor.dtype == torch.float64 for tensor in splits["train"].inputs):
        notes.append("inputs are float64, so the model and the artifact must take float64; float32 is faster")
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


# Reading -------------------------------------------------------------------------------------------


def _named_splits(raw: Any) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise UsageError(
            f'data must be a mapping like {{"train": ..., "val": ...}}, got {_kind(raw)}; put the data under "train"'
        )
    for name in raw:
        if name not in SPLITS:
            near = _SPLIT_ALIASES.get(str(name)) or next(iter(difflib.get_close_matches(str(name), SPLITS, n=1)), None)
            hint = f"did you mean {near!r}?" if near else "remove it"
            raise UsageError(f"unknown split {name!r} in the data; known are train, val and test; {hint}")
    if raw.get("train") is None:
        raise UsageError('the data has no "train"; give it as a Dataset or as a pair (inputs, targets)')
    return {name: raw[name] for name in SPLITS if raw.get(name) is not None}


def _read_split(name: str, value: Any, notes: list[str]) -> Split:
    if isinstance(value, DataLoader):
        raise UsageError(f"{name} is a DataLoader; give its .dataset, batches are made here")
    if isinstance(value, TensorDataset):
        value = value.tensors
    if isinstance(value, tuple | list) and len(value) == 2:
        split = _read_pair(name, value[0], value[1])
    elif isinstance(value, Dataset) or (
        hasattr(value, "__getitem__") and not isinstance(value, tuple | list | str | Mapping | Tensor | np.ndarray)
    ):
        split = _read_dataset(name, value)
        notes.append(f"{name}: the data set was read once; its random transforms, if any, are fixed (use data.augment)")
    else:
        size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise UsageError(
            f"{name} must be a Dataset of (input, target) or a pair (inputs, targets), got {_kind(value)}{size}; "
            "put several inputs into one tuple"
        )
    lengths = {len(tensor) for tensor in split.inputs}
    if lengths != {len(split)}:
        got = ", ".join(map(str, sorted(lengths)))
        raise UsageError(f"{name} has {len(split)} targets but {got} inputs; every input needs one target")
    if len(split) == 0:
        raise UsageError(f"{name} has no samples; give at least one or leave {name} out")
    return split


def _read_pair(name: str, inputs: Any, targets: Any) -> Split:
    parts = tuple(inputs) if isinstance(inputs, tuple) else (inputs,)
    if not parts:
        raise UsageError(f"{name} has an empty tuple of inputs; give at least one tensor")
    return Split(
        inputs=tuple(_tensor(p, f"the inputs of {name}") for p in parts),
        targets=_tensor(targets, f"the targets of {name}"),
    )


def _tensor(value: Any, what: str) -> Tensor:
    try:
        tensor = _as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", None) or _kind(value)
        raise UsageError(f"{what} must be numbers in one tensor or array, got {kind}; convert them first") from error
    if tensor.ndim == 0 or tensor.is_complex():
        got = f"{tensor.dtype} {list(tensor.shape)}"
        raise UsageError(f"{what} must be real numbers [n, ...], got {got}; convert them first")
    return tensor.detach().cpu().contiguous()


def _as_tensor(value: Any) -> Tensor:
    """Arrays keep their dtype; Python's floats become float32. No other objects: torch would accept a PIL image."""
    if isinstance(value, np.ndarray):
        # torch warns about read-only memory and refuses negative strides
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, Tensor | np.generic | int | float | list | tuple):
        return torch.as_tensor(value)
    raise TypeError(f"{_kind(value)} is no number and no array")


def _read_dataset(name: str, dataset: Any) -> Split:
    try:
        total = len(dataset)
    except TypeError as error:
        raise UsageError(f"{name} has no length; give a map-style Dataset, with __len__ and __getitem__") from error
    if total == 0:
        raise UsageError(f"{name} has no samples; give at least one or leave {name} out")
    inputs, target = _read_sample(name, dataset, 0)
    stores = tuple(_storage(name, tensor, total) for tensor in (*inputs, target))
    for index in range(total):
        inputs, target = _read_sample(name, dataset, index)
        for store, tensor in zip(stores, (*inputs, target), strict=True):
            if store.shape[1:] != tensor.shape:
                raise UsageError(
                    f"{name} sample {index} has the shape {list(tensor.shape)}, sample 0 has {list(store.shape[1:])}; "
                    "bring all samples to one shape"
                )
            store[index] = tensor
    return Split(inputs=stores[:-1], targets=stores[-1])


def _read_sample(name: str, dataset: Any, index: int) -> tuple[tuple[Tensor, ...], Tensor]:
    try:
        sample = dataset[index]
    except Exception as error:
        raise UsageError(
            f"{name} sample {index} could not be read ({type(error).__name__}: {error}); correct the data set"
        ) from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
        raise UsageError(
            f"{name} sample {index} must be (input, target), got {_kind(sample)}{size}; "
            "put several inputs into one tuple"
        )
    inputs = tuple(sample[0]) if isinstance(sample[0], tuple) else (sample[0],)
    try:
        return tuple(_as_tensor(part) for part in inputs), _as_tensor(sample[1])
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(_kind(part) for part in (*inputs, sample[1]))
        raise UsageError(
            f"{name} sample {index} must hold tensors or numbers, got {kinds}; convert them in the data set"
        ) from error


def _storage(name: str, sample: Tensor, total: int) -> Tensor:
    needed = total * sample.numel() * sample.element_size()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.8 * memory:
        raise UsageError(
            f"{name} needs {needed / 1e9:.1f} GB in memory, this machine has {memory / 1e9:.1f} GB; give fewer samples"
        )
    return torch.empty(total, *sample.shape, dtype=sample.dtype)


# Checking ------------------------------------------------------------------------------------------


def _task(targets: Tensor, metric: str) -> Task:
    return "regression" if metric == "mse" or targets.is_floating_point() else "classification"


def _with_targets(name: str, split: Split, task: Task, metric: str) -> Split:
    targets = split.targets
    if task == "regression":
        if metric in BUILTIN_METRICS and metric != "mse":
            raise UsageError(
                f"{metric} needs integer class labels, but the targets of {name} are {targets.dtype}; "
                "convert them, or set task.metric to mse"
            )
        return replace(split, targets=targets.float())
    if targets.is_floating_point():
        raise UsageError(f"the targets of {name} are {targets.dtype} but those of train are integers; use one dtype")
    if metric in BUILTIN_METRICS and targets.ndim != 1:
        raise UsageError(
            f"{metric} needs one class label per sample, targets [n], but {name} has {list(targets.shape)}; "
            "for one-hot rows give their argmax"
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


# Storing -------------------------------------------------------------------------------------------


def save_splits(splits: DataSplits, folder: Path) -> Path:
    """Writes one safetensors file that several processes can map; a reader sees the old file or the whole new one.

    Returns:
        The file, `folder`/data.safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, split in splits.items():
        for index, tensor in enumerate((*split.inputs, split.targets)):
            key = f"{name}/targets" if index == len(split.inputs) else f"{name}/input_{index}"
            # The format refuses tensors that share memory, as when one set serves as val and as test.
            shared = any(
                t.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for t in tensors.values()
            )
            tensors[key] = tensor.clone() if shared else tensor.contiguous()
    facts = {"notes": json.dumps(splits.notes), "task": splits.task, "classes": json.dumps(splits.classes)}
    descriptor, temporary = tempfile.mkstemp(prefix=".data-", suffix=".tmp", dir=folder)
    os.close(descriptor)
    try:
        save_file(tensors, temporary, metadata=facts)
        Path(temporary).replace(folder / FILE_NAME)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return folder / FILE_NAME


def load_splits(folder: Path) -> DataSplits:
    """What `save_splits` wrote; the tensors are views of the mapped file, so processes share the memory.

    Raises:
        UsageError: there is no such file, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the handle is no mapping)
        splits = {name: _stored_split(name, tensors) for name in SPLITS}
        notes, classes = tuple(json.loads(facts["notes"])), json.loads(facts["classes"])
        return DataSplits(**splits, notes=notes, task=facts["task"], classes=classes)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is missing or damaged ({error}); delete {folder} and start the study again"
        ) from error


def _stored_split(name: str, tensors: Mapping[str, Tensor]) -> Split:
    count = sum(key.startswith(f"{name}/input_") for key in tensors)
    inputs = tuple(tensors[f"{name}/input_{index}"] for index in range(count))
    return Split(inputs=inputs, targets=tensors[f"{name}/targets"])


def data_digest(splits: DataSplits) -> str:
    """Hash of all values, dtypes and shapes in their order; equal digests mean equal data. 0.4 s for 220 MB."""
    digest = hashlib.sha256(f"{splits.task} {splits.classes}".encode())
    for name, split in splits.items():
        for tensor in (*split.inputs, split.targets):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# Batching ------------------------------------------------------------------------------------------


def augment(inputs: Tensor, kind: Augment, generator: torch.Generator) -> Tensor:
    """Randomly changed copies of images; every image draws its own change.

    Args:
        inputs: [batch, channels, height, width].
        kind: "hflip" mirrors left and right with probability 1/2; "shift" pads an eighth of each side with zeros
            (4 of 32, 3 of 28, 1 of 8) and cuts a random window of the old size.
        generator: on the CPU; the only source of randomness.
    Raises:
        ValueError: an unknown kind, or inputs that are no images.
    """
    kinds = set(kind.split("+")) - {"none"}
    if not kinds:
        return inputs
    if kinds - {"hflip", "shift"} or inputs.ndim != 4:
        raise ValueError(
            f"augment takes none, hflip, shift or hflip+shift and images [batch, channels, height, width], "
            f"got {kind!r} and {list(inputs.shape)}"
        )
    if "hflip" in kinds:
        flip = torch.rand(len(inputs), generator=generator) < 0.5
        inputs = torch.where(flip.to(inputs.device).view(-1, 1, 1, 1), inputs.flip(3), inputs)
    return _shift(inputs, generator) if "shift" in kinds else inputs


def _shift(inputs: Tensor, generator: torch.Generator) -> Tensor:
    batch, _, height, width = inputs.shape
    rows, columns = max(1, height // 8), max(1, width // 8)
    padded = functional.pad(inputs, (columns, columns, rows, rows))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [b, c, 2 rows + 1, 2 columns + 1, h, w], a view
    down = torch.randint(2 * rows + 1, (batch,), generator=generator).to(inputs.device)
    right = torch.randint(2 * columns + 1, (batch,), generator=generator).to(inputs.device)
    return windows[torch.arange(batch, device=inputs.device), :, down, right]


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


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _short(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])}"
