"""Optuna's form of the space."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autocompress.space.search_space import Parameter


def distributions(parameters: dict[str, Parameter]) -> dict[str, BaseDistribution]:
    """The distribution of every parameter, by name."""
    return {
        name: CategoricalDistribution(p.choices) if p.choices else FloatDistribution(p.low, p.high, step=p.step)
        for name, p in parameters.items()
    }
