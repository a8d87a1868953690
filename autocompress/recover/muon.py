"""Muon for matrices, Adam for the rest: what recovers most in the few hundred steps that a trial has.

A step on a weight is its momentum with all singular values set to about one, so directions in which the
gradient is small are learned as fast as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_MATRIX_RATE = 12.0  # a matrix step in units of the learning rate, at which Adam moves every entry by about one
_MOMENTUM, _BETAS, _EPSILON = 0.9, (0.9, 0.99), 1e-8
_MOST_WORK = 2e8  # multiplications for one product of a matrix with itself
_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps for weights with several inputs, Adam for biases, norms and depthwise weights.

    A matrix that is too large to orthogonalise takes Adam's steps, as long as an orthogonalised one would be.

    Args:
        lr: of the Adam part; the steps of matrices are in proportion to it.
        weight_decay: decoupled, for matrices only.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon (with its quintic iteration).
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None and _is_matrix(p)]
            for alike in _by_shape(matrices).values():
                self._step_matrices_(alike, group)
            vectors = [p for p in group["params"] if not _is_matrix(p)]
            if any(p.grad is not None for p in vectors):
                _adam_step_(vectors, group.setdefault("moments", {}), group["lr"])

    def _step_matrices_(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Parameters whose matrices have one shape: together they take the time of one."""
        ahead = []
        for parameter in matrices:
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.mul_(_MOMENTUM).add_(parameter.grad)
            ahead.append(parameter.grad.add(momentum, alpha=_MOMENTUM).flatten(1))  # type: ignore[union-attr]
        rows, columns = ahead[0].shape
        steps = orthogonalize(torch.stack(ahead)) * (_MATRIX_RATE * max(1.0, rows / columns) ** 0.5)
        for parameter, step in zip(matrices, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(step.reshape(parameter.shape), alpha=-group["lr"])


def _by_shape(parameters: list[nn.Parameter]) -> dict[tuple[int, ...], list[nn.Parameter]]:
    found: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
    return found


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is orthogonalised: a huge matrix would take too long."""
    if not _has_inputs(parameter):
        return False
    rows, columns = len(parameter), parameter[0].numel()
    return rows * columns * min(rows, columns) <= _MOST_WORK


def _has_inputs(parameter: Tensor) -> bool:
    """Whether it is a matrix [out, in, *kernel] of more than one input: a depthwise one is none."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= 2


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices [..., rows, columns] with their singular values brought to between 0.7 and 1.2, not decomposed."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    x: Tensor = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _adam_step_(vectors: list[nn.Parameter], moments: dict[str, Any], rate: float) -> None:
    """All of them as one long vector, since each alone is too short to be worth a call."""
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in vectors])
    if "first" not in moments:
        moments |= {"first": torch.zeros_like(gradient), "second": torch.zeros_like(gradient), "count": 0}
    moments["count"] += 1
    first, second, count = moments["first"], moments["second"], moments["count"]
    first.lerp_(gradient, 1 - _BETAS[0])
    second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    scale = (second / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPSILON)
    step = first / scale * (-rate / (1 - _BETAS[0] ** count))
    for parameter, part in zip(vectors, step.split([p.numel() for p in vectors]), strict=True):
        parameter.add_(part.view_as(parameter), alpha=_adam_share(parameter))


def _adam_share(parameter: Tensor) -> float:
    """Of Adam's step: for a matrix what gives it the root mean square of an orthogonalised one.

    Adam moves all entries by the learning rate however many inputs are added up: in a few steps that ruins a layer
    with thousands of them.
    """
    if parameter.ndim != 2 and not _has_inputs(parameter):  # a matrix of one output has inputs, too
        return 1.0
    return float(min(1.0, _MATRIX_RATE * parameter[0].numel() ** -0.5))
