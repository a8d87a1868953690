"""The engine as anybody's Optuna sampler: what it learns from, what it proposes, and how fast."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autocompress.front.hypervolume import hypervolume
from autocompress.plan import ACTIVATIONS, CompressionPlan
from autocompress.search.front_sampler import BELIEF, FrontSampler, Reference
from autocompress.search.options import Candidates, stack
from autocompress.search.pool import _step
from autocompress.search.ranges import distributions
from autocompress.search.sensitivity import Sensitivity
from autocompress.search.stopping import Constraints
from autocompress.space.search_space import SearchSpace

REFERENCE = Reference(metric=0.95, size_bytes=40_000, latency_ms=1.0)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler(space: SearchSpace, **options) -> FrontSampler:
    return FrontSampler(space, **({"sensitivity": None, "reference": REFERENCE} | options))


def open_study(engine: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=engine)


def ask(study: optuna.Study, space: SearchSpace) -> optuna.Trial:
    return study.ask(distributions(space.raw()))


def belief(study: optuna.Study, trial: optuna.Trial) -> dict:
    return study._storage.get_trial_system_attrs(trial._trial_id)[BELIEF]


class World:
    """A made-up network: group b is what accuracy hangs on, group a is what takes the time."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def values(self, params: dict) -> list[float]:
        plan = self.space.decode(params)
        a, b, c = (plan.prune_ratio[n] for n in "abc")
        bits = np.mean([4.0 ** (2 - n) for n in plan.weight_bits.values()])
        drop = 0.002 * a**2 + 0.1 * b**2 + 0.02 * c**2 + 0.02 * bits
        size = 2000 + 500 * np.mean(list(plan.weight_bits.values())) * (3 - a - b - c)
        return [0.95 - drop, size, 0.2 + 0.6 * (1 - a) + 0.1 * (1 - b) + 0.1 * (1 - c)]

    def volume(self, trials: list[optuna.trial.FrozenTrial]) -> float:
        return hypervolume([(0.95 - t.values[0], t.values[1] / 40_000, t.values[2]) for t in trials])


def run(engine, space: SearchSpace, count: int) -> float:
    world, study = World(space), open_study(engine)
    for _ in range(count):
        trial = ask(study, space)
        study.tell(trial, world.values(trial.params))
    return world.volume(study.trials)


def test_a_proposal_is_a_whole_plan_with_what_is_believed_of_it(chain):
    study = open_study(sampler(chain))
    trial = ask(study, chain)
    assert set(trial.params) == set(chain.raw())
    assert set(belief(study, trial)) == {"drop", "sd", "size_ratio", "latency_ratio", "gain", "source"}


def test_it_finds_a_larger_front_than_chance_in_the_same_trials(chain):
    ours = np.mean([run(sampler(chain, seed=seed), chain, 14) for seed in range(3)])
    chance = np.mean([run(optuna.samplers.RandomSampler(seed=seed), chain, 14) for seed in range(3)])
    assert ours > chance + 0.02


def test_it_serves_a_study_that_suggests_its_parameters_one_by_one(chain):
    world, ranges = World(chain), distributions(chain.raw())
    study = open_study(sampler(chain))

    def objective(trial: optuna.Trial) -> list[float]:
        params = {}
        for name, of in ranges.items():
            if isinstance(of, optuna.distributions.CategoricalDistribution):
                params[name] = trial.suggest_categorical(name, of.choices)
            else:
                params[name] = trial.suggest_float(name, of.low, of.high, step=of.step)
        return world.values(params)

    study.optimize(objective, n_trials=8)
    assert all(belief(study, trial)["gain"] >= 0 for trial in study.trials)
    learned = study.sampler.believed_drops(study)
    assert sorted(learned) == [t.number for t in study.trials if chain.decode(t.params).trains]


def test_no_plan_is_proposed_twice(chain):
    world, study = World(chain), open_study(sampler(chain))
    seen = set()
    for _ in range(15):
        trial = ask(study, chain)
        plan = chain.decode(trial.params)
        assert plan.structure_key() not in seen
        seen.add(plan.structure_key())
        study.tell(trial, world.values(trial.params))


def test_it_learns_latency_from_trials_that_were_stopped_and_accuracy_from_those_that_were_not(chain):
    engine = sampler(chain)
    study = open_study(engine)
    first = ask(study, chain)
    first.set_user_attr("size_and_latency", [12_000.0, 0.9])
    study.tell(first, state=TrialState.PRUNED)
    ask(study, chain)
    one = engine._options.encode([chain.decode(first.params)])
    assert engine._files.latency.predict(one)[0] == pytest.approx(0.9, abs=0.02)
    assert engine._files.size.predict(one)[0] == pytest.approx(12_000)
    assert len(engine._front) == 0


def test_a_training_that_ended_at_its_rung_tells_what_its_end_would_have_been(chain):
    """Of what is lost at the rung half is left at the end in all others, so 0.12 there would have been 0.06."""
    world, engine = World(chain), sampler(chain)
    study = open_study(engine)
    for level in (0.3, 0.4, 0.5, 0.6):
        params = chain.encode(chain.from_knobs({"knob/prune_level": level, "knob/bits": 4}))
        values = world.values(params)
        attributes = {"rung_drop": 2 * (0.95 - values[0])}
        ranges = distributions(chain.raw())
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, values=values, user_attrs=attributes))
    stopped = ask(study, chain)
    one = engine._options.encode([chain.decode(stopped.params)])
    before, front = engine._damage.predict(one)[0][0], engine._front.copy()
    stopped.set_user_attr("rung_drop", 0.12)
    stopped.set_user_attr("size_and_latency", [12_000.0, 0.5])
    study.tell(stopped, state=TrialState.PRUNED)
    engine._learn(study)
    assert before < 0.04
    assert before + (0.06 - before) / 3 < engine._damage.predict(one)[0][0] < 0.07
    assert np.array_equal(engine._front, front), "it was not trained to its end"
    assert stopped.number not in engine.believed_drops(study)


class Timer:
    """A processor on which integers take a part or a multiple of the time of floats."""

    def __init__(self, space: SearchSpace, *, integers: float) -> None:
        self.world, self.integers, self.asked = World(space), integers, []

    def __call__(self, plan: CompressionPlan) -> float:
        self.asked.append(plan)
        return self.ms(self.world.space.encode(plan))

    def ms(self, params: dict) -> float:
        return self.world.values(params)[2] * (self.integers if params["activations"] == "uint8" else 1.0)


@pytest.mark.parametrize(("integers", "faster"), [(4.0, "float"), (0.25, "uint8")])
def test_where_it_is_in_doubt_which_activations_are_faster_the_other_ones_are_timed(chain, integers, faster):
    timer = Timer(chain, integers=integers)
    study, kinds = open_study(sampler(chain, timer=timer)), []
    for _ in range(12):
        trial = ask(study, chain)
        tried = {t.params["activations"] for t in study.trials[:-1]}
        assert tried or timer.asked, "nothing was known of either kind"
        kinds.append(trial.params["activations"])
        study.tell(trial, [*timer.world.values(trial.params)[:2], timer.ms(trial.params)])
    assert kinds.count(faster) >= 9
    assert len(timer.asked) <= 6, "it is not in doubt for ever"
    trained = {chain.decode(t.params).structure_key() for t in study.trials}
    assert len({p.structure_key() for p in timer.asked}) == len(timer.asked), "nothing is timed twice"
    assert any(p.structure_key() not in trained for p in timer.asked)


def test_what_was_timed_elsewhere_is_believed_and_not_timed_again(chain):
    engine = sampler(chain)
    plan = chain.from_knobs({"knob/prune_level": 0.5, "knob/bits": 4, "knob/activations": "uint8"})
    one = engine._options.encode([plan])
    engine.learn_latency(plan, 0.123)
    assert engine._files.latency.predict(one)[0] == pytest.approx(0.123, abs=0.02)
    other = replace(one, activations=1 - one.activations)
    assert len(engine._twins(one)) == 1
    assert len(engine._twins(other)) == 0
    engine.learn_latency(plan, float("inf"))
    assert engine._files.latency.predict(one)[0] == pytest.approx(0.123, abs=0.02), "there is no file of it"


def test_without_a_timer_what_is_believed_of_activations_is_enough(chain):
    study = open_study(sampler(chain))
    assert chain.decode(ask(study, chain).params).activations in ACTIVATIONS


def test_a_failed_trial_is_followed_by_another_one(chain):
    study = open_study(sampler(chain))
    study.tell(ask(study, chain), state=TrialState.FAIL)
    assert ask(study, chain).params


def test_a_constraint_keeps_proposals_inside_of_it(chain):
    study = open_study(sampler(chain, constraints=Constraints(max_latency=0.5)))
    for _ in range(8):
        trial = ask(study, chain)
        assert belief(study, trial)["latency_ratio"] <= 0.5
        study.tell(trial, World(chain).values(trial.params))


@pytest.mark.parametrize("objectives", [("accuracy", "size", "latency"), ("accuracy", "size")])
def test_what_breaks_a_bound_takes_nothing_from_what_keeps_it(chain, objectives):
    """A tiny file without loss, and slow: where latency is no objective it beats everything that anybody may use."""
    reference = replace(REFERENCE, objectives=objectives)
    gains, engines = [], []
    for slow in ([], [0.95, 400, 0.6]):
        engine = sampler(chain, reference=reference, constraints=Constraints(max_latency=0.5))
        study = optuna.create_study(directions=["maximize", *["minimize"] * (len(objectives) - 1)], sampler=engine)
        attrs = {"plan": CompressionPlan(weight_bits={"a": 8}, activations="uint8").to_dict(), "latency_ms": 0.6}
        if slow:
            study.add_trial(optuna.create_trial(values=slow[: len(objectives)], user_attrs=attrs))
        first = ask(study, chain)
        gains.append(belief(study, first)["gain"])
        study.tell(first, [0.94, 5_000, 0.4][: len(objectives)])
        ask(study, chain)
        engines.append(engine)
    assert gains[1] > 0.5 * gains[0] > 0
    assert sorted(engines[1]._front[:, 3]) == [0, 2], "both stay: one to start from, one to be had"


GOAL = Constraints(max_drop=0.005, max_size=12_000, max_latency=0.5)


def goal_sampler(space: SearchSpace) -> FrontSampler:
    """Of ten times a trial's training in the last stage: what a trial loses, it loses a third of in the end."""
    return sampler(space, reference=replace(REFERENCE, later=10.0), constraints=GOAL)


def test_for_a_goal_what_loses_too_much_takes_nothing_away_but_has_to_be_surpassed(chain):
    """Gains of a plan whose final drop is foreseen, before and after trials whose own prospects are known."""
    half = CompressionPlan(prune_ratio={"a": 0.5}, weight_bits=dict.fromkeys(["a", "b", "c", "fc"], 4)).to_dict()
    mean, sd, cheap = np.array([0.005]), np.array([0.001]), np.array([[0.2, 0.4]])
    gains = {}
    for name, drop in (("none", None), ("far off", 0.15), ("hopeless", 0.06), ("as good", 0.018), ("better", 0.004)):
        engine = goal_sampler(chain)
        if drop is not None:
            study = open_study(engine)
            study.add_trial(optuna.create_trial(values=[0.95 - drop, 8_000, 0.4], user_attrs={"plan": half}))
            ask(study, chain)
            assert (engine._front[:, 3] == (0 if name == "better" else 1)).all()
        gains[name] = engine._gains(mean, sd, cheap)[0]
    assert gains["far off"] == pytest.approx(gains["none"], rel=0.01)
    assert 0.96 * gains["none"] < gains["hopeless"] < gains["none"], "the noise of a drop leaves it a chance in sixty"
    assert gains["better"] < 0.1 * gains["none"]
    assert 0 < gains["as good"] < 0.6 * gains["none"]


def test_the_solver_meets_the_bounds_of_a_goal(chain):
    """Of the plans at random prices few keep both bounds; of those at prices stepped towards them most do."""
    shares = {}
    for name, bounds in (("free", Constraints()), ("goal", GOAL)):
        engine = sampler(chain, constraints=bounds)
        plans = stack([engine._pool.solved(engine._looked) for _ in range(10)])
        size, latency = engine._files.size.predict(plans), engine._files.latency.predict(plans)
        kept = (size <= 12_000) & (latency <= 0.5)
        shares[name] = kept.mean()
        nearest = np.maximum(size / 12_000, latency / 0.5)[kept]
        shares[name + " tight"] = np.median(nearest)
    assert shares["goal"] > 0.6
    assert shares["goal tight"] > shares["free tight"]


def test_a_bound_on_the_drop_keeps_proposals_inside_of_it_once_something_is_known(chain):
    def beyond(**bounds: float) -> int:
        count = 0
        for seed in range(3):
            study = open_study(sampler(chain, seed=seed, constraints=Constraints(**bounds)))
            for _ in range(16):
                trial = ask(study, chain)
                study.tell(trial, World(chain).values(trial.params))
            count += sum(0.95 - t.values[0] > 0.005 for t in study.trials[5:])
        return count

    assert 3 * beyond(max_drop=0.005) < beyond()


def test_a_resumed_study_teaches_a_new_sampler_all_it_knew(chain):
    known = sampler(chain)
    world, study = World(chain), open_study(known)
    for _ in range(6):
        trial = ask(study, chain)
        study.tell(trial, world.values(trial.params))
    fresh = sampler(chain, seed=1)
    study.sampler = fresh
    ask(study, chain)
    study.sampler = known
    ask(study, chain)  # it learns of the sixth only now
    assert len(fresh._front) == len(fresh._parents) > 1
    np.testing.assert_array_equal(fresh._front, known._front)


@pytest.mark.parametrize("part", ["solver", "surrogate"])
def test_each_part_can_be_left_out(chain, part):
    assert run(sampler(chain, without=(part,)), chain, 5) > 0


def test_two_objectives_ignore_what_is_not_asked_for(chain):
    engine = sampler(chain, reference=replace(REFERENCE, objectives=("accuracy", "latency")))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=engine)
    trial = ask(study, chain)
    assert belief(study, trial)["size_ratio"] == 0
    study.tell(trial, [0.94, 0.5])
    ask(study, chain)
    np.testing.assert_allclose(engine._front, [[0.01, 0.0, 0.5, 0.0]], rtol=0.05)


def test_the_luckiest_of_many_trials_is_not_taken_at_its_word(chain):
    engine = sampler(chain, reference=replace(REFERENCE, noise=0.01))
    study = open_study(engine)
    first = ask(study, chain)
    study.tell(first, [0.93, 10_000, 0.5])
    for value in (0.93, 0.93, 0.96):  # a drop of 2 points three times, and then one of -1
        study.add_trial(
            optuna.create_trial(params=first.params, distributions=engine._raw, values=[value, 10_000, 0.5])
        )
    believed = engine.believed_drops(study)
    assert 0.0 < believed[3] < 0.015
    assert believed[2] == pytest.approx(0.02, abs=0.006)


def test_where_zipped_bytes_count_it_learns_that_zeros_make_the_file_smaller(chain):
    """A world in which 80 % of zeros halve the zipped file at no loss; at first they are thought to save 21 %."""
    space = replace(chain, config=chain.config.model_copy(update={"sparsity": (0.0, 0.8)}))
    assert "sparsity" in space.raw()
    engine = sampler(space, reference=replace(REFERENCE, objectives=("accuracy", "compressed", "latency")))
    study, world, shares = open_study(engine), World(space), []
    usual = space.encode(space.from_knobs({"knob/prune_level": 0.2, "knob/bits": 4}))
    pair = engine._options.encode([space.decode(usual | {"sparsity": share}) for share in (0.0, 0.8)])
    assert _share_left(engine, pair) == pytest.approx(0.79, abs=0.01)
    for _ in range(14):
        trial = ask(study, space)
        metric, size, latency = world.values(trial.params)
        shares.append(trial.params["sparsity"])
        study.tell(trial, [metric, size * (0.5 if shares[-1] else 1.0), latency])
    assert set(shares) == {0.0, 0.8}
    ask(study, space)  # it learns of the last one
    assert _share_left(engine, pair) < 0.74


def _share_left(engine: FrontSampler, pair: Candidates) -> float:
    without, with_zeros = engine._files.size.predict(pair)
    return float(with_zeros / without)


def test_measured_sensitivities_steer_the_first_proposals(chain):
    """Group b cannot lose anything, a and c can lose all they may: no proposal prunes b as much as the others."""
    width = {n: {"8": 4.0 if n == "b" else 1e-4} for n in "abc"}
    study = open_study(sampler(chain, sensitivity=Sensitivity(width=width)))
    found = [chain.decode(ask(study, chain).params).prune_ratio for _ in range(6)]
    assert np.mean([p["b"] for p in found]) < np.mean([(p["a"] + p["c"]) / 2 for p in found])


def test_it_finds_out_which_layer_bears_low_rank(factored):
    """Factors of outer cost nothing, those of inner 8 points: the later proposals factor the one and not the other."""
    study = open_study(sampler(factored))
    found = []
    for _ in range(12):
        trial = ask(study, factored)
        assert set(trial.params) == set(factored.raw())
        plan = factored.decode(trial.params)
        inner, outer = plan.rank_ratio["inner"], plan.rank_ratio["outer"]
        pruned = sum(plan.prune_ratio.values())
        drop = 0.08 * inner + 0.05 * pruned
        size = 1_000 * np.mean(list(plan.weight_bits.values())) * (3 - inner - outer - pruned)
        study.tell(trial, [0.95 - drop, size, 1 - 0.3 * (inner + outer)])
        found.append((inner, outer))
    inner, outer = np.array(found[-6:]).mean(0)
    assert outer > inner
    assert outer > 0.25


def test_a_network_that_cannot_be_pruned_gets_proposals_of_bits(chain):
    layers = tuple(replace(n, group=None, sources={}) for n in chain.facts.layers)
    space = SearchSpace(config=chain.config, facts=replace(chain.facts, layers=layers, groups=()))
    study = open_study(sampler(space))
    seen = set()
    for _ in range(4):
        trial = ask(study, space)
        plan = space.decode(trial.params)
        assert plan.prune_ratio == {}
        assert set(plan.weight_bits) == {"a", "b", "c", "fc"}
        seen.add((plan.activations, *plan.weight_bits.values()))
        drop = 0.02 * float(np.mean([4.0 ** (2 - n) for n in plan.weight_bits.values()]))
        study.tell(trial, [0.95 - drop, 2000 + 2000 * float(np.mean(list(plan.weight_bits.values()))), 0.8])
    assert len(seen) == 4


def test_a_number_names_a_place_and_a_direction():
    sixths = [_step((i + 0.5) / 6, 3) for i in range(6)]
    assert sixths == [(0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1)]
    assert _step(np.nextafter(1.0, 0.0), 3) == (2, 1), "never beyond the last"


def test_plans_like_one_that_turned_out_worse_than_its_parts_are_expected_to_be_worse_too(chain):
    engine = sampler(chain)
    study = open_study(engine)
    first = ask(study, chain)
    study.tell(first, [0.80, 10_000, 0.5])
    ask(study, chain)
    one = engine._options.encode([chain.decode(first.params)])
    mean, _, unknown = engine._from_kin(one)
    assert unknown[0] == pytest.approx(0.0, abs=1e-6)
    assert mean[0] == pytest.approx(engine.believed_drops(study)[0])
    assert mean[0] > engine._damage.sum_of_parts(one)[0][0]


def test_nothing_is_proposed_twice_as_long_as_there_is_something_new(chain):
    study = open_study(sampler(chain))
    keys = []
    for _ in range(12):
        trial = ask(study, chain)
        keys.append(chain.decode(trial.params).structure_key())
        study.tell(trial, [0.5, 1.0, 1.0])
    assert len(set(keys)) == len(keys)


def test_changes_of_a_reference_stay_inside_of_the_space(chain):
    space = replace(chain, config=chain.config.model_copy(update={"activations": ("float",)}))
    engine = sampler(space)
    study = open_study(engine)
    anchor = {
        "plan": CompressionPlan(weight_bits=dict.fromkeys(["a", "b", "c", "fc"], 8), activations="uint8").to_dict()
    }
    study.add_trial(optuna.create_trial(state=TrialState.COMPLETE, values=[0.95, 9_000, 0.1], user_attrs=anchor))
    ask(study, space)
    assert engine._parents.activations.tolist() == [ACTIVATIONS.index("uint8")]
    assert set(engine._pool.mutated(engine._parents).activations.tolist()) == {ACTIVATIONS.index("float")}


def test_a_bound_on_what_is_no_objective_is_kept_as_well(chain):
    reference = replace(REFERENCE, objectives=("accuracy", "latency"))
    engine = sampler(chain, reference=reference, constraints=Constraints(max_size=9_000))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=engine)
    for _ in range(6):
        trial = ask(study, chain)
        assert engine._files.size.predict(engine._options.encode([chain.decode(trial.params)]))[0] <= 9_000
        metric, size, latency = World(chain).values(trial.params)
        trial.set_user_attr("size_bytes", size)
        study.tell(trial, [metric, latency])
    assert (engine._front[:, 1] == 0).all(), "it is no axis of the front"


def test_a_plan_that_failed_is_not_tried_again_unless_it_was_interrupted(chain):
    engine = sampler(chain)
    study = open_study(engine)
    first = ask(study, chain)
    study.tell(first, state=TrialState.FAIL)
    second = ask(study, chain)
    failed = chain.decode(first.params)
    assert chain.decode(second.params).structure_key() != failed.structure_key()
    one = engine._options.encode([failed])
    assert engine._damage.unlike(one, engine._failed).tolist() == [[0.0]]
    second.set_user_attr("interrupted", True)
    study.tell(second, state=TrialState.FAIL)
    ask(study, chain)
    assert len(engine._failed) == 1


def test_a_trial_that_never_ends_does_not_keep_it_from_learning(chain):
    engine = sampler(chain)
    world, study = World(chain), open_study(engine)
    lost, other = ask(study, chain), ask(study, chain)
    study.tell(other, world.values(other.params))
    ask(study, chain)
    assert len(engine._parents) == 1
    study.tell(lost, world.values(lost.params))
    assert set(engine.believed_drops(study)) >= {n.number for n in (lost, other) if chain.decode(n.params).trains}


def test_threads_share_one_sampler_and_every_trial_is_learned_once(chain):
    engine = sampler(chain)
    world, study = World(chain), open_study(engine)

    def work(_: int) -> None:
        trial = ask(study, chain)
        study.tell(trial, world.values(trial.params))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(16)))
    believed = engine.believed_drops(study)
    assert len(engine._trainings) == len(believed) == sum(chain.decode(t.params).trains for t in study.trials)


def test_it_can_be_kept_in_a_file(chain):
    engine = sampler(chain)
    study = open_study(engine)
    ask(study, chain)
    study.sampler = pickle.loads(pickle.dumps(engine))
    assert set(ask(study, chain).params) == set(chain.raw())
