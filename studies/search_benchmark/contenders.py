"""Who takes part: what each contender changes in a study, and nothing else.

Every contender runs the same program on the same study file; it differs from the others in `[search]` alone. All of
them know size and latency before they train and fold removed channels into the kept ones, unless their name says
otherwise, so what is compared is the search and not the evaluator. The reasons are in PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "baseline", "helped", "ablation"]

PARTS = ("solver", "surrogate", "compensation", "ladder", "stop", "inherit", "blocks")
# What belongs to the engine and not to the evaluator: a contender that is not ours has none of it.
ENGINE = ("solver", "surrogate", "ladder", "inherit", "blocks")
OURS = "ours"

# A sweep needs to know beforehand how long a plan may train. These are generous, since a sweep that ends early spends
# the rest on training its front further, and one that ends late leaves plans out.
START_S = 15.0  # until the first plan of the sweep: the worker, the baseline, fp16 and int8
BESIDE_S = 2.5  # of one plan beside its training: pruning, timing with both activations, exporting, judging


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to spend the budget.

    Attributes:
        name: as in the tables; it never changes its meaning.
        kind: "helped" is a baseline with one part of the engine, "ablation" is ours without one.
        what: one phrase for the table of contenders.
        search: keys of `[search]` that differ from the study file.
        plans: of a pure sweep, over which the searching time is divided equally; 0 for the others.
    """

    name: str
    kind: Kind
    what: str
    search: Mapping[str, Any] = field(default_factory=dict)
    plans: int = 0

    def settings(self, budget_s: float) -> dict[str, Any]:
        """The keys of `[search]` at a budget."""
        if not self.plans:
            return dict(self.search)
        searching = budget_s * (1 - self.search["final_share"]) - START_S - self.plans * BESIDE_S
        return {**self.search, "train_s": round(max(1.0, searching / self.plans), 1)}


def _sweep(plans: int) -> Contender:
    search = {"sampler": "sweep", "sweep": plans, "final_share": 0.05, "without": ENGINE}
    what = f"uniform sweep of {plans} plans, the time divided equally"
    return Contender(name=f"sweep{plans}", kind="baseline", what=what, search=search, plans=plans)


def _sampler(name: str, sampler: str, what: str, *, sweep: int) -> Contender:
    search = {"sampler": sampler, "sweep": sweep, "without": ENGINE}
    return Contender(name=name, kind="baseline", what=what, search=search)


def _with_blocks(name: str, base: Contender) -> Contender:
    without = tuple(part for part in ENGINE if part != "blocks")
    what = f"{base.name}, which may leave out whole blocks as ours may"
    return Contender(name=name, kind="helped", what=what, search={**base.search, "without": without})


def _without(part: str) -> Contender:
    search = {"sampler": "front", "without": (part,)}
    return Contender(name=f"no_{part}", kind="ablation", what=f"ours without {_PART_WORDS[part]}", search=search)


_PART_WORDS = {
    "solver": "the solver",
    "surrogate": "the surrogate",
    "compensation": "folding removed channels into the kept ones",
    "ladder": "the fidelity ladder",
    "stop": "the stop rule",
    "inherit": "inherited weights",
    "blocks": "dropping blocks",
}

_TPE = _sampler("tpe", "tpe", "Optuna's TPE over every group and layer", sweep=0)
_TPE_WARM = _sampler("tpe_warm", "tpe", "the same after a uniform sweep of 7 plans", sweep=7)

_ALL = (
    Contender(name=OURS, kind="ours", what="the front sampler, as it is by default", search={"sampler": "front"}),
    *(_sweep(plans) for plans in (3, 7, 14)),
    _TPE,
    _TPE_WARM,
    _sampler("nsga2", "nsga2", "Optuna's NSGA-II, a uniform sweep of 7 plans in its first population", sweep=7),
    _sampler("random_stop", "random", "random plans; those that cannot enter the front are not trained", sweep=0),
    _sampler("knobs", "knobs", "TPE over a few shared dials after a uniform sweep of 7 plans", sweep=7),
    _sampler("gp", "gp", "a Gaussian process over the same dials after the same sweep", sweep=7),
    Contender(
        name="oneshot",
        kind="baseline",
        what="a front from sensitivities measured once, without feedback from training",
        search={"sampler": "front", "sweep": 0, "without": ("surrogate", "ladder", "inherit", "blocks")},
    ),
    _with_blocks("tpe_blocks", _TPE),
    _with_blocks("tpe_warm_blocks", _TPE_WARM),
    *(_without(part) for part in PARTS),
)

CONTENDERS: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}


def toml(value: Any) -> str:
    """A value of a table above as it is written after `--set table.key=`."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(entry) for entry in value) + "]"
    return str(value)
