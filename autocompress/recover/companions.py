"""What may accompany a training beside the teacher's outputs: hints from inside the teacher, and a mean teacher.

Each adds a term to the loss of every step. Both run a second network on every batch, so a step takes longer;
`studies/NOTES.md` says what that bought.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.plan import DistillPlan
from autocompress.recover.distill import soft_loss
from autocompress.space.layers import CONVS
from autocompress.space.watch import watched

_WEIGHTED = (*CONVS, nn.Linear)
_POINTS = 3  # places inside of the network at which it is compared with its teacher
_NEW, _SOLVED, _RIDGE = 0.1, 5, 1e-4  # weight of the newest batch; batches between two solutions; of the diagonal
_DECAY = 0.98  # of the mean teacher: it averages over about 50 steps


class Companion(Protocol):
    """Adds to the loss of each step."""

    def loss(self, inputs: tuple[Tensor, ...], outputs: Tensor, targets: Tensor) -> Tensor: ...
    def after_step(self, model: nn.Module) -> None: ...
    def close(self) -> None: ...


def companions_for(
    student: nn.Module, teacher: nn.Module, distill: DistillPlan, example: Sequence[Tensor], device: torch.device
) -> list[Companion]:
    """Those that a plan asks for.

    Args:
        student: on the CPU, as it will be trained.
        teacher: the dense network on the CPU, in eval mode; hints need its inside, and so no other network's.
        example: inputs of one forward, each [n, ...].
    """
    found: list[Companion] = []
    if distill.hints > 0 or distill.attention > 0:
        found.append(Hints(student, teacher, distill, example, device))
    if distill.mean_teacher > 0:
        found.append(MeanTeacher(student, distill, device))
    return found


class Hints:
    """Compares what reaches a few layers in the student and in the teacher.

    `hints` weighs the squared error of the student's channels, taken to the teacher's by a 1x1 adapter; it is relative
    to the teacher's own size. The adapter is the best linear map for the last few batches, in closed form: trained
    along, with steps that suit a network, it took the student away from what it knew. `attention` weighs the squared
    distance between maps of where there is much, which need no adapter; features without places have none.

    Source: Romero et al. 2015, arXiv:1412.6550 (hints); Zagoruyko and Komodakis 2017, arXiv:1612.03928 (attention).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distill: DistillPlan,
        example: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        self._distill = distill
        self._teacher = copy.deepcopy(teacher).to(device).eval() if device.type != "cpu" else teacher
        layers = hint_layers(teacher, student, example)
        self._seen: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        watched = (("student", student), ("teacher", self._teacher))
        self._handles = [self._watch(side, name, network) for side, network in watched for name in layers]
        self._adapters = {name: Adapter() for name in layers} if distill.hints > 0 else {}

    def loss(self, inputs: tuple[Tensor, ...], outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            self._teacher(*inputs)
        total = outputs.new_zeros(())
        for name, wanted in self._seen["teacher"].items():
            own = self._seen["student"][name]
            if name in self._adapters:
                rows = _rows(wanted)
                error = (_rows(own) @ self._adapters[name](_rows(own.detach()), rows) - rows).square().mean()
                total = total + self._distill.hints * error / rows.square().mean().clamp_min(1e-12)
            if self._distill.attention > 0 and wanted.ndim > 2:
                total = total + self._distill.attention * (attention(own) - attention(wanted)).square().sum(1).mean()
        return total

    def after_step(self, model: nn.Module) -> None:
        pass

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, side: str, name: str, network: nn.Module) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._seen[side][name] = _channels_second(module, inputs[0]).float()

        return network.get_submodule(name).register_forward_pre_hook(see)


class Adapter:
    """The linear map from one set of channels to another with the least squared error over the last batches."""

    def __init__(self) -> None:
        self._inner = self._cross = torch.zeros(0)
        self._map = torch.zeros(0)
        self._count = 0

    @torch.no_grad()
    def __call__(self, own: Tensor, wanted: Tensor) -> Tensor:
        """The map [own channels, wanted channels], after these rows [n, channels] of both."""
        inner, cross = own.T @ own / len(own), own.T @ wanted / len(own)
        first = self._count == 0
        self._inner = inner if first else self._inner.lerp(inner, _NEW)
        self._cross = cross if first else self._cross.lerp(cross, _NEW)
        if self._count % _SOLVED == 0:
            ridge = _RIDGE * self._inner.diagonal().mean().clamp_min(1e-12)
            identity = torch.eye(len(inner), device=inner.device)
            self._map = torch.linalg.solve(self._inner + ridge * identity, self._cross)
        self._count += 1
        return self._map


class MeanTeacher:
    """A running average of the student itself as a second teacher, on the same batch.

    Source: Tarvainen and Valpola 2017, arXiv:1703.01780.
    """

    def __init__(self, student: nn.Module, distill: DistillPlan, device: torch.device) -> None:
        self._distill, self._device = distill, device
        self._mean = _frozen_copy(student, device)

    @property
    def mean(self) -> nn.Module:
        """The average as it is now."""
        return self._mean

    def loss(self, inputs: tuple[Tensor, ...], outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            soft = self._mean(*inputs).float()
        loss = soft_loss(outputs, soft, targets, temperature=self._distill.temperature)
        return self._distill.mean_teacher * loss

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Move the average towards the student; where rounding has set in, it starts again from there."""
        own, mean = model.state_dict(), self._mean.state_dict()
        if own.keys() != mean.keys():
            self._mean = _frozen_copy(model, self._device)
            return
        for name, value in mean.items():
            if value.is_floating_point():
                value.lerp_(own[name], 1 - _DECAY)
            else:
                value.copy_(own[name])

    def close(self) -> None:
        pass


def attention(features: Tensor) -> Tensor:
    """Where there is much: the mean square over channels of [n, channels, *places], to unit length, [n, places]."""
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


@torch.no_grad()
def hint_layers(teacher: nn.Module, student: nn.Module, example: Sequence[Tensor]) -> list[str]:
    """Layers in front of which both can be compared, evenly spaced over the network; the last one is always among them.

    What reaches them must be as large in both but for the channels.
    """
    shapes = {"teacher": _shapes(teacher, example), "student": _shapes(student, example)}
    own = shapes["student"]
    fitting = [
        name
        for name, shape in shapes["teacher"].items()
        if name in own and own[name][2:] == shape[2:] and own[name][0] == shape[0]
    ][1:]  # what reaches the first layer is the input itself
    count = min(_POINTS, len(fitting))
    return [fitting[round((i + 1) * len(fitting) / count) - 1] for i in range(count)]


def _shapes(network: nn.Module, example: Sequence[Tensor]) -> dict[str, torch.Size]:
    """Of what reaches each layer in one forward, in the order in which the layers run."""
    seen: dict[str, torch.Size] = {}

    def see(name: str, module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        seen[name] = _channels_second(module, inputs[0]).shape

    with watched(network, lambda m: isinstance(m, _WEIGHTED), see):
        network(*example)
    return seen


def _channels_second(module: nn.Module, features: Tensor) -> Tensor:
    """Inputs of a layer as [n, channels, *places]; linear layers have their channels last."""
    return features.movedim(-1, 1) if isinstance(module, nn.Linear) else features


def _rows(features: Tensor) -> Tensor:
    """[n, channels, *places] as [n * places, channels]; a convolution with 1x1 kernels is a product with these."""
    return features.movedim(1, -1).flatten(0, -2)


def _frozen_copy(student: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(student).to(device).eval().requires_grad_(False)
