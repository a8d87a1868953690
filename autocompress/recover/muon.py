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
_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps for weights with several inputs, Adam for biases, norms and depthwise weights.

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
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if _is_matrix(parameter):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(_matrix_step(parameter.grad, state), alpha=-group["lr"] * _MATRIX_RATE)
                else:
                    _adam_step_(parameter, parameter.grad, state, group["lr"])


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) > 1  # [out, in, *kernel]; a depthwise weight has one input


def _matrix_step(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    momentum: Tensor = state.setdefault("momentum", torch.zeros_like(gradient))
    momentum.mul_(_MOMENTUM).add_(gradient)
    ahead = gradient.add(momentum, alpha=_MOMENTUM).flatten(1)
    rows, columns = ahead.shape
    step: Tensor = orthogonalize(ahead) * max(1.0, rows / columns) ** 0.5
    return step.reshape(gradient.shape)


def orthogonalize(matrix: Tensor) -> Tensor:
    """`matrix` [rows, columns] with its singular values brought to between 0.7 and 1.2, without a decomposition."""
    a, b, c = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / (wide.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _adam_step_(parameter: Tensor, gradient: Tensor, state: dict[str, Any], rate: float) -> None:
    first: Tensor = state.setdefault("first", torch.zeros_like(parameter))
    second: Tensor = state.setdefault("second", torch.zeros_like(parameter))
    state["count"] = count = state.get("count", 0) + 1
    first.lerp_(gradient, 1 - _BETAS[0])
    second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    scale = (second / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPSILON)
    parameter.addcdiv_(first, scale, value=-rate / (1 - _BETAS[0] ** count))
