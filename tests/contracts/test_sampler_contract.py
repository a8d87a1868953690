"""What every sampler must do, whoever wrote it: whole plans inside the space, whatever happened to earlier trials."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.config import SAMPLERS, SpaceConfig
from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, GroupFacts, LayerFacts, ModelFacts
from autocompress.search.front_sampler import Reference
from autocompress.search.ranges import distributions
from autocompress.search.sampler import make_sampler
from autocompress.space.search_space import SearchSpace, snap

FACTS = ModelFacts(
    layers=tuple(
        LayerFacts(name=n, kind="conv", weights=100, out_channels=24, group=n) for n in ("stem", "mid", "end")
    ),
    groups=(
        GroupFacts(name="stem", channels=24, granule=8, layers=("stem", "mid")),
        GroupFacts(name="end", channels=64, granule=8, layers=("end",)),
    ),
)
CONFIG = SpaceConfig(importance=("l1", "taylor"), distill_weight=(0.9, 0.5), max_prune_ratio=0.7)
REFERENCE = Reference(metric=0.95, size_bytes=1000, latency_ms=1.0)
SPACE = SearchSpace(config=CONFIG, facts=FACTS)


@pytest.mark.parametrize("name", SAMPLERS)
class TestSampler:
    @pytest.fixture(autouse=True)
    def _storage(self, tmp_path: Path):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.url = f"sqlite:///{tmp_path / 'study.db'}"

    def open(self, name: str, *, seed: int = 0) -> optuna.Study:
        return optuna.create_study(
            study_name="s", storage=self.url, directions=["maximize", "minimize", "minimize"],
            sampler=make_sampler(name, SPACE, seed=seed, reference=REFERENCE), load_if_exists=True,
        )  # fmt: skip

    def ask(self, study: optuna.Study) -> tuple[optuna.Trial, CompressionPlan]:
        trial = study.ask(distributions(SPACE.raw()))
        assert set(trial.params) == set(SPACE.raw()), "every proposal is a whole plan"
        plan = SPACE.decode(trial.params)
        for group in FACTS.groups:
            ratio = plan.prune_ratio[group.name]
            assert 0 <= ratio <= CONFIG.max_prune_ratio + 1e-9
            assert ratio == pytest.approx(snap(group, ratio)), "a width that the group may have"
            assert ratio == pytest.approx(trial.params[f"prune_ratio/{group.name}"]), "the plan is what was proposed"
        assert set(plan.weight_bits) == {n.name for n in FACTS.layers}
        assert set(plan.weight_bits.values()) <= set(CONFIG.weight_bits)
        assert plan.activations in CONFIG.activations
        assert plan.importance in CONFIG.importance
        assert plan.distill.weight in CONFIG.distill_weight
        return trial, plan

    def tell(self, study: optuna.Study, trial: optuna.Trial, plan: CompressionPlan) -> None:
        """Ends trials in turn as complete, stopped and failed."""
        size = sum(plan.weight_bits.values()) * (1 - sum(plan.prune_ratio.values()) / 4)
        if trial.number % 3 == 0:
            study.tell(trial, [0.9 - 0.2 * sum(plan.prune_ratio.values()), size, size / 50])
        elif trial.number % 3 == 1:
            trial.set_user_attr("size_and_latency", [size, size / 50])
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, state=TrialState.FAIL)

    def test_every_proposal_is_a_whole_plan_inside_the_space(self, name):
        study = self.open(name)
        for _ in range(24):
            self.tell(study, *self.ask(study))
        assert [t.number for t in study.trials] == list(range(24))

    def test_a_resumed_study_goes_on_from_its_storage(self, name):
        study = self.open(name)
        for _ in range(10):
            self.tell(study, *self.ask(study))
        resumed = self.open(name, seed=1010)
        trial, plan = self.ask(resumed)
        assert trial.number == 10
        self.tell(resumed, trial, plan)
        assert [t.state for t in resumed.trials[:3]] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]

    def test_trials_of_our_own_making_do_not_disturb_it(self, name):
        study = self.open(name)
        inside = SPACE.encode(SPACE.from_knobs({"knob/prune_level": 0.5, "knob/bits": 8}))
        assert inside is not None
        study.add_trial(optuna.create_trial(values=[0.9, 100.0, 1.0]))  # the baseline is outside of the space
        study.add_trial(
            optuna.create_trial(values=[0.8, 50.0, 0.5], params=inside, distributions=distributions(SPACE.raw()))
        )
        for _ in range(12):
            self.tell(study, *self.ask(study))

    def test_only_failures_do_not_stop_it(self, name):
        study = self.open(name)
        for _ in range(12):
            trial, _ = self.ask(study)
            study.tell(trial, state=TrialState.FAIL)

    def test_a_trial_that_nobody_ended_does_not_disturb_it(self, name):
        study = self.open(name)
        self.ask(study)
        trial, _ = self.ask(self.open(name))
        assert trial.number == 1

    def test_proposals_are_not_all_alike(self, name):
        study = self.open(name)
        plans = set()
        for _ in range(8):
            trial, plan = self.ask(study)
            plans.add(plan.structure_key())
            study.tell(trial, [0.5, 1.0, 1.0])
        assert len(plans) > 4
        assert all(math.isfinite(v) for t in study.trials for v in t.values or [])


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_remove_blocks_of_the_network_or_none(name):
    block = BlockFacts(name="tail", layers=("end",), groups=("end",))
    space = SearchSpace(config=CONFIG, facts=replace(FACTS, blocks=(block,)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = make_sampler(name, space, seed=0, reference=replace(REFERENCE, objectives=("accuracy", "size")))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    removed = set()
    for number in range(12):
        plan = space.decode(study.ask(distributions(space.raw())).params)
        removed.add(plan.removed_blocks)
        assert ("end" in plan.prune_ratio) is ("end" in plan.weight_bits) is (not plan.removed_blocks)
        study.tell(number, [1.0, float(number)])
    if name in ("knobs", "gp"):
        assert removed == {()}, "the dials remove no blocks"
    elif name in ("tpe", "nsga2", "random"):
        assert removed == {(), ("tail",)}
    else:
        assert removed <= {(), ("tail",)}, "as it is worth it"
