"""The one training loop: recovers a pruned network, with rounded weights towards the end, or trains a teacher.

It trains for a number of seconds, not of steps: the learning rate follows the share of the time that
is spent, so a slow machine trains less but always to the end of its schedule.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.compress.feedback import round_with_feedback_
from autocompress.compress.quantize import FakeQuantize, quantize_weights_
from autocompress.compress.sparsify import Sparsifier, Sparsity
from autocompress.plan import DistillPlan, Levels
from autocompress.recover.augment import VIEWS, Augment, Views, augment
from autocompress.recover.companions import Companion
from autocompress.recover.data import batches
from autocompress.recover.distill import recovery_loss
from autocompress.recover.muon import Muon
from autocompress.recover.rate import disagreement, rate_share
from autocompress.recover.read import Split

_WARM_UP = 0.05  # share of the schedule
_GUARD_S = 1.0
_TIMED = 2  # steps after which it is known how long one takes; the first one is slower
_TIMED_SAMPLES, _SLOW_S = 16, 0.5  # two precisions are compared on so few where a whole batch takes longer
_MANY_EPOCHS = 20  # in which a network learns the teacher's answers by heart, unless much was taken from it
_MOST_BYTES = 256 * 2**20  # of the teacher's outputs on disk, and of those on all views in memory
Answers = Callable[[tuple[Tensor, ...]], Tensor]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What a training did.

    Attributes:
        samples: that it has seen.
        curve: (seconds, loss), thinned.
        finite: False if it diverged and was ended.
    """

    steps: int
    samples: int
    seconds: float
    curve: tuple[tuple[float, float], ...]
    finite: bool


class TeacherOutputs:
    """The teacher's outputs on the training data, computed on first use and kept.

    All trials of a study visit the samples in the same order, so the first one pays for the teacher and
    the others do not. A training of a few epochs sees the data as it is, which recovers most; one of many sees
    it in fixed `Views`, each kept like data of its own, or it would learn the teacher's answers by heart.
    Without a teacher there is nothing to keep, and every batch is augmented afresh.

    Attributes:
        answers: computes what the teacher says if something is faster at that than the teacher itself.

    Args:
        teacher: in eval mode; None for training without one. A copy of it is kept on the trainer's device.
        train: the training split.
        kind: augmentation of the views, or of the batches where there is no teacher.
        seed: of the augmentation.
    """

    def __init__(self, teacher: nn.Module | None, train: Split, *, trainer: Trainer, kind: Augment, seed: int) -> None:
        self._trainer = trainer
        self.teacher = teacher
        self.answers: Answers | None = None
        if teacher is not None and trainer.device.type != "cpu":
            self.teacher = copy.deepcopy(teacher).to(trainer.device)
        self._kind, self._generator = kind, torch.Generator().manual_seed(seed + 1)
        self.train = train
        self._views: Views | None = None
        self._outputs: Tensor | None = None
        self._known = torch.zeros(len(train), dtype=torch.bool)
        self._kept = 0  # known when they were last written or read

    def save(self, path: Path) -> None:
        """Write what is known for a later study of the same teacher and data, if there is more than before."""
        known = int(self._known.sum())
        if self._outputs is None or known == self._kept or self._outputs.nbytes > _MOST_BYTES:
            return
        unfinished = path.with_suffix(f".{os.getpid()}.part")  # another study may write the same file
        save_file({"outputs": self._outputs, "known": self._known}, unfinished)
        unfinished.replace(path)
        self._kept = known

    def load(self, path: Path) -> None:
        """Take over what an earlier study has written.

        Raises:
            ValueError: the file is of other data.
        """
        stored = load_file(path)
        if len(stored["known"]) > len(self.train):
            self._all_views()
        if stored["known"].shape != self._known.shape:
            raise ValueError(f"{path.name} holds outputs of {len(stored['known'])} samples, not of this data")
        self._known, self._outputs = stored["known"], stored["outputs"]
        self._kept = int(self._known.sum())

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """(inputs, targets, teacher's outputs) for [batch] indices.

        Args:
            epoch: the data is seen as it is without one, else each sample in another view than in the epoch before.
                All views are in every batch: where they take turns, a training ends on one of them.
        """
        if self.teacher is None:
            inputs = tuple(augment(t[indices], self._kind, self._generator) for t in self.train.inputs)
            return inputs, self.train.targets[indices], None
        if epoch is None:
            inputs = tuple(t[indices] for t in self.train.inputs)
            return inputs, self.train.targets[indices], self._soft(self.teacher, indices, inputs)
        views = self._all_views()
        view = (indices + epoch) % views.count
        inputs, targets = views.take(view, indices)
        return inputs, targets, self._soft(self.teacher, indices + view * len(self.train), inputs)

    @property
    def varies(self) -> bool:
        """Whether there may be views: what the teacher says of all of them must not take too much memory."""
        return self._outputs is not None and self._outputs[0].nbytes * VIEWS * len(self.train) <= _MOST_BYTES

    def _all_views(self) -> Views:
        """The views, and room for what the teacher says of them; most studies never ask for any."""
        if self._views is None:
            self._views = Views(self.train, self._kind, self._generator)
            more = (self._views.count - 1) * len(self.train)
            self._known = torch.cat([self._known, torch.zeros(more, dtype=torch.bool)])
            if self._outputs is not None:
                self._outputs = torch.cat([self._outputs, torch.zeros(more, *self._outputs.shape[1:])])
        return self._views

    @torch.no_grad()
    def _soft(self, teacher: nn.Module, indices: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        missing = ~self._known[indices]
        if missing.any():
            unknown = tuple(t[missing] for t in inputs)
            fresh = self.answers(unknown) if self.answers else _forward(teacher, unknown, self._trainer)
            fresh = fresh.float().cpu()
            if self._outputs is None:
                self._outputs = torch.zeros(len(self._known), *fresh.shape[1:])
            self._outputs[indices[missing]] = fresh
            self._known[indices[missing]] = True
        assert self._outputs is not None
        return self._outputs[indices]


def finetune_(
    model: nn.Module,
    source: TeacherOutputs,
    *,
    trainer: Trainer,
    seconds: float,
    learning_rate: float,
    distill: DistillPlan,
    weight_bits: Mapping[str, int] | None = None,
    quantize_from: float = 0.5,
    levels: Levels = "uniform",
    feedback: Sequence[Tensor] = (),
    seed: int = 0,
    seen: int = 0,
    steps: int | None = None,
    sparsity: Sparsity | None = None,
    companions: Sequence[Companion] = (),
    on_step: Callable[[float], None] = lambda share: None,
) -> TrainingReport:
    """Train `model` in place and leave it in eval mode on the CPU, weights quantized by parametrizations.

    Args:
        seconds: of training; the learning rate rises for 5 % of them and then falls to zero along a cosine.
        learning_rate: its peak, as `Muon` takes it; `rate_share` lowers it where there are only a few steps. A step
            takes the rate of its own middle, so that of few steps none is wasted at the ends of the schedule.
        seen: samples that the network was trained on before; it goes on where that training ended.
        weight_bits: layers to round; those below 8 bits are rounded while training, the others afterwards.
        levels: that rounding leaves, as in the plan.
        feedback: inputs that those below 8 bits are rounded by, each [n, ...]; none: to the nearest.
        quantize_from: share of the training after which rounding sets in, in [0, 1).
        steps: end after so many steps if that comes first; infinite `seconds` count steps alone.
        sparsity: weights to zero on the way.
        companions: add terms to the loss of each step.
        on_step: called with the share that is done; what it raises ends the training.
    """
    bits = dict(weight_bits or {})
    low_bits = {n: b for n, b in bits.items() if b < 8}
    _use_channels_last_(model.train().to(trainer.device))
    sparsifier = Sparsifier(model, sparsity) if sparsity else None
    optimizer = Muon((p for p in model.parameters() if p.requires_grad), lr=learning_rate, weight_decay=1e-4)
    clock = _Clock(seconds=seconds, steps=steps)
    curve: list[tuple[float, float]] = []
    finite, rounding = True, False
    peak, damage = learning_rate, 0.0
    order, varied = _epochs(source, trainer.batch_size, seed, seen), False
    while (share := clock.share()) < 1 and finite:
        with trainer.guard():
            held = time.perf_counter()
            while share < 1 and finite and time.perf_counter() - held < _GUARD_S:
                if low_bits and not rounding and share >= quantize_from:
                    if not _has_finite_weights(model):
                        finite = False
                        break
                    fed = tuple(t.to(trainer.device) for t in feedback)
                    _start_rounding_(model, low_bits, levels, fed, optimizer, peak)
                    rounding = True
                if sparsifier:
                    sparsifier.step(share)
                indices, epoch = next(order)
                inputs, targets, soft = source.batch(indices, epoch if varied else None)
                optimizer.zero_grad(set_to_none=True)
                loss, outputs = _differentiate(
                    model, inputs, targets, soft, trainer=trainer, distill=distill, companions=companions
                )
                finite = math.isfinite(loss)
                if soft is not None and clock.count <= _TIMED:
                    if clock.count == 0:
                        damage = disagreement(outputs.cpu(), soft, targets)
                    peak = learning_rate * rate_share(damage, clock.expected_steps())
                    epochs = clock.expected_steps() * len(indices) / len(source.train)
                    varied = epochs >= _MANY_EPOCHS and source.varies
                for group in optimizer.param_groups:
                    group["lr"] = peak * _schedule(clock.middle(share))
                _update_(model, optimizer, companions)
                clock.tick()
                curve.append((clock.elapsed(), loss))
                on_step(share)
                share = clock.share()
    model.eval().to(torch.device("cpu")).to(memory_format=torch.contiguous_format)
    finite = finite and _has_finite_weights(model)  # the loss is that of the weights before the last step
    if finite and sparsifier:
        sparsifier.choose_()
    if finite:
        if low_bits and not rounding:  # a step took longer than all the training was to take
            _round_(model, low_bits, levels, feedback)
        quantize_weights_(model, {n: b for n, b in bits.items() if b >= 8}, levels)
    return TrainingReport(
        steps=clock.count,
        samples=clock.count * min(trainer.batch_size, len(source.train)),
        seconds=clock.elapsed(),
        curve=_thin(curve),
        finite=finite,
    )


@torch.no_grad()
def evaluate_in_torch(model: nn.Module, split: Split, trainer: Trainer) -> Tensor:
    """Outputs of `model` (in eval mode) on a split, [n, ...], in batches; a guard, never a reported number."""
    parts = [t.split(500) for t in split.inputs]  # type: ignore[no-untyped-call]
    return torch.cat([_forward(model, inputs, trainer).float() for inputs in zip(*parts, strict=True)])


def prefers_bf16(model: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> bool:
    """Whether a training step under bfloat16 autocast is faster, by timing a few of each; never if it fails."""
    network = _use_channels_last_(copy.deepcopy(model).train().to(device))
    timed, trainer = tuple(inputs), Trainer(device=device, bf16=False, batch_size=len(inputs[0]))
    few = tuple(t[:_TIMED_SAMPLES] for t in inputs)
    plain = _step_seconds(network, few, trainer)
    if plain * len(inputs[0]) / len(few[0]) > _SLOW_S:
        timed = few
    else:
        plain = _step_seconds(network, timed, trainer)
    try:
        return _step_seconds(network, timed, replace(trainer, bf16=True)) < 0.95 * plain
    except RuntimeError:  # an operation that does not know bfloat16
        return False


def _step_seconds(model: nn.Module, inputs: tuple[Tensor, ...], trainer: Trainer) -> float:
    """Of the fastest of a few forward and backward passes."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        _forward(model, inputs, trainer).float().square().mean().backward()  # type: ignore[no-untyped-call]
        if trainer.device.type == "cuda":  # which has only been asked so far
            torch.cuda.synchronize(trainer.device)
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(slots=True)
class _Clock:
    seconds: float
    steps: int | None
    count: int = 0
    step_s: float = 0.0
    ticked: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def tick(self) -> None:
        """A step is done."""
        now = self.elapsed()
        self.count, self.step_s, self.ticked = self.count + 1, now - self.ticked, now

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def share(self) -> float:
        by_time = self.elapsed() / max(self.seconds, 1e-9)
        return by_time if self.steps is None else max(by_time, self.count / self.steps)

    def expected_steps(self) -> float:
        """How many there will be if all take as long as the last one, or as the first one has taken so far."""
        by_time = self.seconds / max(self.step_s if self.count else self.elapsed(), 1e-9)
        return by_time if self.steps is None else min(by_time, self.steps)

    def middle(self, share: float) -> float:
        """The share that is done in the middle of a step that begins at `share`."""
        return min(1.0, share + 0.5 / self.expected_steps())


def _epochs(source: TeacherOutputs, batch_size: int, seed: int, seen: int) -> Iterator[tuple[Tensor, int]]:
    """(indices, epoch) of each batch, after the first `seen` samples of the order that all trainings share."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(source.train))
    per_epoch = len(source.train) // size
    order = enumerate(batches(source.train, batch_size, generator))
    return ((indices, count // per_epoch) for count, indices in islice(order, seen // size, None))


def _differentiate(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    targets: Tensor,
    soft: Tensor | None,
    *,
    trainer: Trainer,
    distill: DistillPlan,
    companions: Sequence[Companion] = (),
) -> tuple[float, Tensor]:
    """The gradients of one batch, added to those that are there; its loss, and the outputs."""
    outputs = _forward(model, inputs, trainer).float()
    soft, targets = None if soft is None else soft.to(trainer.device), targets.to(trainer.device)
    loss = recovery_loss(outputs, targets, soft, temperature=distill.temperature, weight=distill.weight)
    if companions:
        moved = tuple(t.to(trainer.device) for t in inputs)
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.bf16):
            loss = loss + torch.stack([c.loss(moved, outputs, targets) for c in companions]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), outputs.detach()


def _update_(model: nn.Module, optimizer: torch.optim.Optimizer, companions: Sequence[Companion]) -> None:
    """One step of the optimizer along the gradients that are there."""
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    for companion in companions:
        companion.after_step(model)


def _forward(model: nn.Module, inputs: tuple[Tensor, ...], trainer: Trainer) -> Tensor:
    moved = tuple(_channels_last(t.to(trainer.device)) for t in inputs)
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.bf16):
        result: Tensor = model(*moved)
    return result


def _has_finite_weights(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def _start_rounding_(
    model: nn.Module,
    bits: Mapping[str, int],
    levels: Levels,
    feedback: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> None:
    _round_(model, bits, levels, feedback)
    scales = [m.log_scale for m in model.modules() if isinstance(m, FakeQuantize)]
    optimizer.add_param_group({"params": scales, "lr": rate, "weight_decay": 0.0})


def _round_(model: nn.Module, bits: Mapping[str, int], levels: Levels, feedback: Sequence[Tensor]) -> None:
    """Round weights by what the samples say, or to the nearest where there are none; in place."""
    dense, was_training = copy.deepcopy(model).eval() if feedback else None, model.training
    quantize_weights_(model, bits, levels)
    if dense is not None:
        round_with_feedback_(model.eval(), dense, feedback)
        model.train(was_training)


def _schedule(share: float) -> float:
    if share < _WARM_UP:
        return share / _WARM_UP + 1e-3
    return 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP))) + 1e-3


def _use_channels_last_(model: nn.Module) -> nn.Module:
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


def _thin(curve: list[tuple[float, float]], points: int = 60) -> tuple[tuple[float, float], ...]:
    step = max(1, len(curve) // points)
    return tuple((round(s, 3), round(loss, 5)) for s, loss in curve[::step])
