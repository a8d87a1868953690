"""The knob sampler: dials become whole plans, stopped trials teach, and a resumed study goes on where it was."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from autocompress.config import SpaceConfig
from autocompress.records import GroupFacts, LayerFacts, ModelFacts
from autocompress.search.front_sampler import FrontSampler, Reference
from autocompress.search.knob_sampler import _KNOBS, KnobSampler
from autocompress.search.ranges import distributions
from autocompress.search.sampler import make_sampler
from autocompress.space.search_space import Parameter, SearchSpace

FACTS = ModelFacts(
    layers=tuple(LayerFacts(name=n, kind="conv", weights=100, out_channels=16, group=n) for n in "abc"),
    groups=tuple(GroupFacts(name=n, channels=16, granule=4, layers=(n,)) for n in "ab"),
)
SPACE = SearchSpace(config=SpaceConfig(), facts=FACTS)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_study(sampler: optuna.samplers.BaseSampler, **options) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler, **options)


def knob_sampler(seed: int = 0) -> KnobSampler:
    return KnobSampler(SPACE, inner=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8), seed=seed)


def values(params: dict) -> list[float]:
    pruned = (params["prune_ratio/a"] + params["prune_ratio/b"]) / 2
    return [0.9 - 0.1 * pruned, 1000 * (1 - pruned), 1 - pruned]


def test_choices_become_categories_and_ranges_stepped_floats():
    found = distributions({"bits": Parameter(choices=(4, 8)), "r": Parameter(high=0.75, step=0.25)})
    assert found == {"bits": CategoricalDistribution((4, 8)), "r": FloatDistribution(0.0, 0.75, step=0.25)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("front", FrontSampler),
        ("knobs", KnobSampler),
        ("gp", KnobSampler),
        ("tpe", optuna.samplers.TPESampler),
        ("nsga2", optuna.samplers.NSGAIISampler),
        ("random", optuna.samplers.RandomSampler),
    ],
)
def test_every_name_of_a_study_file_has_its_sampler(name, kind):
    assert (
        type(make_sampler(name, SPACE, seed=0, reference=Reference(metric=0.9, size_bytes=1000, latency_ms=1.0)))
        is kind
    )


def test_the_dials_of_a_proposal_are_kept_and_decode_to_it():
    study = open_study(knob_sampler())
    for _ in range(12):
        trial = study.ask(distributions(SPACE.raw()))
        dials = trial.storage.get_trial_system_attrs(trial._trial_id)[_KNOBS]
        assert set(dials) == set(SPACE.knobs())
        assert SPACE.decode(trial.params) == SPACE.from_knobs(dials)
        study.tell(trial, values(trial.params))


def test_a_seed_decides_the_proposals_and_another_one_changes_them():
    def propose(seed: int) -> list[dict]:
        study = open_study(knob_sampler(seed))
        return [study.ask(distributions(SPACE.raw())).params for _ in range(4)]

    assert propose(1) == propose(1)
    assert propose(1) != propose(2)


def test_history_holds_complete_trials_and_stopped_ones_at_the_worst_accuracy_seen():
    sampler = knob_sampler()
    study = open_study(sampler)
    for accuracy in (0.9, 0.7):
        study.tell(study.ask(distributions(SPACE.raw())), [accuracy, 500.0, 0.5])
    stopped = study.ask(distributions(SPACE.raw()))
    stopped.set_user_attr("size_and_latency", [123.0, 0.25])
    study.tell(stopped, state=TrialState.PRUNED)
    study.tell(study.ask(distributions(SPACE.raw())), state=TrialState.FAIL)
    unknown = study.ask(distributions(SPACE.raw()))  # stopped before its file was weighed
    study.tell(unknown, state=TrialState.PRUNED)
    assert [t.values for t in sampler._history(study)] == [[0.9, 500.0, 0.5], [0.7, 500.0, 0.5], [0.7, 123.0, 0.25]]


def test_for_a_minimised_metric_the_worst_is_the_largest():
    sampler = knob_sampler()
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    for error in (0.1, 0.4):
        study.tell(study.ask(distributions(SPACE.raw())), [error, 500.0, 0.5])
    stopped = study.ask(distributions(SPACE.raw()))
    stopped.set_user_attr("size_and_latency", [1.0, 0.1])
    study.tell(stopped, state=TrialState.PRUNED)
    assert sampler._history(study)[-1].values == [0.4, 1.0, 0.1]


def test_nothing_is_learned_before_any_trial_was_trained():
    sampler = knob_sampler()
    study = open_study(sampler)
    stopped = study.ask(distributions(SPACE.raw()))
    stopped.set_user_attr("size_and_latency", [1.0, 0.1])
    study.tell(stopped, state=TrialState.PRUNED)
    assert sampler._history(study) == []


def test_a_trial_of_another_set_of_dials_is_left_out():
    sampler = knob_sampler()
    study = open_study(sampler)
    trial = study.ask(distributions(SPACE.raw()))
    study._storage.set_trial_system_attr(trial._trial_id, _KNOBS, {"knob/other": 1})
    study.tell(trial, [0.9, 500.0, 0.5])
    assert sampler._history(study) == []


def test_what_is_good_is_proposed_more_often_than_by_chance():
    """Accuracy falls with bits below 8 here, and nothing is won by them: TPE should learn to ask for 8 or more."""
    study = open_study(knob_sampler())
    bits = []
    for _ in range(60):
        trial = study.ask(distributions(SPACE.raw()))
        bits.append(trial.params["weight_bits/b"])
        study.tell(trial, [0.9 if bits[-1] == 8 else 0.5, 100.0 if bits[-1] == 8 else 900.0, 0.5])
    assert bits[20:].count(8) > 20, "by chance it would be 10 of 40"
