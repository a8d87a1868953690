"""How a study divides its budget."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.config import StudyConfig

_OF_BUDGET = 1 / 50  # that trains one trial
_OF_SPENT = 2 * _OF_BUDGET  # as much where half of the budget is over, about when the last stage begins
_OF_PREPARING = 1 / 8  # what is slow to prepare is slow to train
_FIRST_S = 2.4  # what two minutes give to a trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the budget is divided, in seconds.

    Attributes:
        train_s: training of one trial.
        first_s: the same of the first ones.
        final_s: of the final stage at least: a share of what preparing has left, so a slow teacher shortens both
            stages.
    """

    train_s: float
    first_s: float
    final_s: float

    def trial_s(self, spent_s: float) -> float:
        """Training of a trial that begins when so much was spent: a long search begins like a short one."""
        return min(self.train_s, max(self.first_s, _OF_SPENT * spent_s))


def schedule(config: StudyConfig, *, preparing_s: float = 0.0, is_goal: bool = False) -> Schedule:
    """A fiftieth of the budget trains one trial (from 1.5 s to 5 minutes), unless the study says otherwise.

    The first trials of a long search for a front are shorter, so that it has one early. Only the front sampler knows
    what the length of a training is worth, and for a goal one file at the end is all that counts.
    """
    search = config.search
    train_s = search.train_s or min(300.0, max(1.5, _OF_BUDGET * search.budget))
    grows = search.train_s is None and search.sampler == "front" and not is_goal
    first_s = min(train_s, max(_FIRST_S, _OF_PREPARING * preparing_s)) if grows else train_s
    final_s = search.final_share * max(0.0, search.budget - preparing_s)
    return Schedule(train_s=train_s, first_s=first_s, final_s=final_s)
