"""How a network runs on this machine while it trains: device, precision and memory format."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autocompress.recover.read import Split
from autocompress.recover.strides import strides_apart

_TIMED_SAMPLES, _SLOW_S = 16, 0.5  # two precisions are compared on so few where a whole batch takes longer
_HOPELESS = 2.0  # times slower on a few samples: a whole batch is not asked. Ten times and more without bfloat16 units


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """How to train on this machine.

    Attributes:
        device: where the network trains.
        bf16: run under bfloat16 autocast; a gain for dense convolutions, a loss for depthwise ones.
        batch_size: samples per step.
        guard: entered for about a second of training at a time, so that nobody times anything meanwhile.
    """

    device: torch.device
    bf16: bool
    batch_size: int
    guard: Callable[[], AbstractContextManager[None]] = nullcontext


def forward(model: nn.Module, inputs: tuple[Tensor, ...], trainer: Trainer) -> Tensor:
    """What `model` says, on the device and in the precision of the trainer, [batch, ...]."""
    moved = tuple(_channels_last(t.to(trainer.device)) for t in inputs)
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.bf16):
        result: Tensor = model(*moved)
    return result


@torch.no_grad()
def evaluate_in_torch(model: nn.Module, split: Split, trainer: Trainer) -> Tensor:
    """Outputs of `model` (in eval mode) on a split, [n, ...], in batches; a guard, never a reported number."""
    parts = [t.split(500) for t in split.inputs]  # type: ignore[no-untyped-call]
    return torch.cat([forward(model, inputs, trainer).float() for inputs in zip(*parts, strict=True)])


def prefers_bf16(model: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> bool:
    """Whether a training step under bfloat16 autocast is faster, by timing a few of each; never if it fails."""
    network = use_channels_last_(copy.deepcopy(model).train().to(device))
    trainer = Trainer(device=device, bf16=False, batch_size=len(inputs[0]))
    few = tuple(t[:_TIMED_SAMPLES] for t in inputs)
    plain = mixed = 0.0
    for timed in (few, tuple(inputs)):
        plain = _step_seconds(network, timed, trainer)
        try:
            mixed = _step_seconds(network, timed, replace(trainer, bf16=True))
        except RuntimeError:  # an operation that does not know bfloat16
            return False
        if mixed > _HOPELESS * plain or plain * len(inputs[0]) / len(few[0]) > _SLOW_S:
            break
    return mixed < 0.95 * plain


def _step_seconds(model: nn.Module, inputs: tuple[Tensor, ...], trainer: Trainer) -> float:
    """Of the fastest of a few forward and backward passes."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        with strides_apart(model):
            forward(model, inputs, trainer).float().square().mean().backward()  # type: ignore[no-untyped-call]
        if trainer.device.type == "cuda":  # which has only been asked so far
            torch.cuda.synchronize(trainer.device)
        times.append(time.perf_counter() - start)
    return min(times)


def use_channels_last_(model: nn.Module) -> nn.Module:
    """Weights over images in the format that trains fastest, in place; `Module.to` would refuse those over volumes."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def _channels_last(tensor: Tensor) -> Tensor:
    """Images in the memory format that trains fastest, anything else as it is.

    With a single channel they are in every format at once, and the network would go on in the slower one: hence the
    strides, which only say what is so already.
    """
    if tensor.ndim != 4:
        return tensor
    _, channels, height, width = tensor.shape
    images = tensor.contiguous(memory_format=torch.channels_last)
    return images.as_strided(images.shape, (channels * height * width, 1, channels * width, channels))
