"""The one training loop: recovers a pruned network, with rounded weights towards the end, or trains a teacher.

It trains for a number of seconds, not of steps: the learning rate follows the share of the time that
is spent, so a slow machine trains less but always to the end of its schedule.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autocompress.compress.feedback import round_with_feedback_
from autocompress.compress.quantize import FakeQuantize, quantize_weights_
from autocompress.compress.sparsify import Sparsifier, Sparsity
from autocompress.plan import DistillPlan, Levels
from autocompress.recover.companions import Companion
from autocompress.recover.distill import recovery_loss
from autocompress.recover.muon import Muon
from autocompress.recover.order import Order
from autocompress.recover.outputs import TeacherOutputs
from autocompress.recover.rate import disagreement, rate_share
from autocompress.recover.strides import strides_apart
from autocompress.recover.trainer import Trainer, forward, use_channels_last_

_WARM_UP = 0.05  # share of the schedule
_GUARD_S = 1.0
_TIMED = 2  # steps after which it is known how long one takes; the first one is slower
_MANY_EPOCHS = 20  # in which a network learns the teacher's answers by heart, unless much was taken from it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What a training did.

    Attributes:
        samples: that it has seen.
        curve: (seconds, loss), thinned; the loss rises where `Order` leaves out what the teacher is sure of.
        finite: False if it diverged and was ended.
    """

    steps: int
    samples: int
    seconds: float
    curve: tuple[tuple[float, float], ...]
    finite: bool


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
    use_channels_last_(model.train().to(trainer.device))
    sparsifier = Sparsifier(model, sparsity) if sparsity else None
    optimizer = Muon((p for p in model.parameters() if p.requires_grad), lr=learning_rate, weight_decay=1e-4)
    clock = _Clock(seconds=seconds, steps=steps)
    curve: list[tuple[float, float]] = []
    finite, rounding = True, False
    peak, damage = learning_rate, 0.0
    order, varied = Order(source, trainer.batch_size, seed=seed, seen=seen), False
    while (share := clock.share()) < 1 and finite:
        with trainer.guard(), strides_apart(model):
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
                indices = next(order)
                inputs, targets, soft = source.batch(indices, order.epoch if varied else None)
                optimizer.zero_grad(set_to_none=True)
                loss, outputs = _differentiate(
                    model, inputs, targets, soft, trainer=trainer, distill=distill, companions=companions
                )
                finite = math.isfinite(loss)
                if soft is not None and (clock.count <= _TIMED or order.undecided):
                    differs = disagreement(outputs.cpu(), soft, targets)
                    epochs = clock.expected_steps() * len(indices) / len(source.train)
                    if clock.count == 0:
                        damage = differs
                    if clock.count <= _TIMED:
                        peak = learning_rate * rate_share(damage, clock.expected_steps())
                        varied = epochs >= _MANY_EPOCHS and source.varies
                    else:
                        order.consider(differs, epochs)
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
    outputs = forward(model, inputs, trainer).float()
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


def _thin(curve: list[tuple[float, float]], points: int = 60) -> tuple[tuple[float, float], ...]:
    step = max(1, len(curve) // points)
    return tuple((round(s, 3), round(loss, 5)) for s, loss in curve[::step])
