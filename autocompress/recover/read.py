"""Reads what users hand over as data: Datasets, pairs of tensors or arrays, samples that are tuples.

Everything becomes tensors of the values that came; whether they make sense is judged in `recover/data.py`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from autocompress.errors import UsageError

SPLITS = ("train", "val", "test")
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
        targets: int64 class labels [n] (classification), bool [n, labels] (several labels), or float32 [n, ...]
            (regression). Their dtype decides the loss.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor) -> Split:
        """The samples at `index`, copied."""
        return Split(inputs=tuple(t[index] for t in self.inputs), targets=self.targets[index])

    def sample(self, count: int) -> Split:
        """`count` samples, or all if there are fewer, evenly spaced from the first to the last and copied.

        Data may be sorted by class, so the first ones say little of the rest.
        """
        chosen = min(count, len(self))
        return self.take(torch.arange(chosen) * (len(self) - 1) // max(1, chosen - 1))

    def spread(self, count: int) -> tuple[Tensor, ...]:
        """The inputs of `sample`."""
        return self.sample(count).inputs


def read_splits(raw: Any, notes: list[str]) -> dict[str, Split]:
    """The splits that were given, in the order train, val, test.

    Args:
        raw: as for `split_data`.
        notes: gets a sentence for every data set that was read sample by sample.
    Raises:
        UsageError: in one sentence, the first thing that is not as expected.
    """
    return {name: _read_split(name, value, notes) for name, value in _named_splits(raw).items()}


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
        if len(inputs) != len(stores) - 1:
            raise UsageError(
                f"{name} sample {index} has {len(inputs)} inputs, sample 0 has {len(stores) - 1}; "
                "give all samples as many"
            )
        for store, tensor in zip(stores, (*inputs, target), strict=True):
            if store.shape[1:] != tensor.shape:
                raise UsageError(
                    f"{name} sample {index} has the shape {list(tensor.shape)}, sample 0 has {list(store.shape[1:])}; "
                    "bring all samples to one shape"
                )
            if store.dtype != tensor.dtype:  # storing it would round or wrap it without a word
                raise UsageError(
                    f"{name} sample {index} holds {tensor.dtype} where sample 0 holds {store.dtype}; "
                    "convert all samples to one dtype"
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


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
