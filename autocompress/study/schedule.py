"""How a study divides its budget."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.config import StudyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the budget is divided, in seconds.

    Attributes:
        train_s: training of one trial.
        final_s: of the final stage at least: a share of what preparing has left, so a slow teacher shortens both
            stages.
    """

    train_s: float
    final_s: float


def schedule(config: StudyConfig, *, preparing_s: float = 0.0) -> Schedule:
    """A fiftieth of the budget trains one trial (from 1.5 s to 5 minutes), unless the study says otherwise."""
    budget = config.search.budget
    train_s = config.search.train_s or min(300.0, max(1.5, budget / 50))
    return Schedule(train_s=train_s, final_s=config.search.final_share * max(0.0, budget - preparing_s))
