"""The arithmetic of the benchmark of the search: what a run had found by when, the statistics, and the report."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.config import SearchConfig, load_config, read_toml
from autocompress.errors import UsageError
from autocompress.front.hypervolume import hypervolume
from autocompress.plan import CompressionPlan
from autocompress.records import Latency, Measurement, TrialRecord, TrialState

FOLDER = Path(__file__).resolve().parents[2] / "studies" / "search_benchmark"
NAMES = ("contenders", "curve", "paired", "tasks", "run", "side_by_side", "analyse", "known")


def _load() -> dict[str, ModuleType]:
    """The scripts import each other by name, as when one of them is run; afterwards these names are free again."""
    import importlib

    # The folder is shipped as it is: no compiled files in it.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        sys.dont_write_bytecode = before
        for name in NAMES:
            sys.modules.pop(name, None)


MODULES = _load()
contenders, curve, paired, tasks, run, side_by_side, analyse, known = (MODULES[name] for name in NAMES)


def point(spent_s: float, val: float, test: float, size: float, latency: float) -> Any:
    return curve.Point(spent_s=spent_s, val=val, test=test, size_ratio=size, latency_ratio=latency)


# Baseline 0.90 on val and test. The second loses 1 point on test: (1 - 0.01 / 0.05) * 0.5 * 0.5 = 0.2. The third is
# better than the second on validation data in everything and so replaces it, but loses 3 points on test:
# 0.4 * 0.6 * 0.6 = 0.144. The last ends after the budget.
TRIALS = [
    point(10, 0.90, 0.90, 1.0, 1.0),
    point(20, 0.88, 0.89, 0.5, 0.5),
    point(60, 0.89, 0.87, 0.4, 0.4),
    point(101, 0.90, 0.90, 0.1, 0.1),
]


class TestCurve:
    def test_a_share_counts_the_trials_that_had_ended_by_then(self):
        found = curve.at_shares(TRIALS, 0.90, budget_s=100, shares=(0.05, 0.1, 0.199, 0.2, 0.6, 1.0))
        assert found == pytest.approx([0.0, 0.0, 0.0, 0.2, 0.144, 0.144])

    def test_the_front_is_chosen_on_validation_and_judged_on_test_data(self):
        assert curve.chosen(TRIALS[:3]) == [TRIALS[0], TRIALS[2]]
        assert curve.hypervolume_on_val(TRIALS[:3], 0.90) == pytest.approx((1 - 0.01 / 0.05) * 0.6 * 0.6)

    def test_another_reference_drop_stretches_the_axis(self):
        assert curve.hypervolume_on_test(TRIALS[:2], 0.90, drop=0.10) == pytest.approx(0.9 * 0.25)
        assert curve.hypervolume_on_test(TRIALS[:2], 0.90, drop=0.02) == pytest.approx(0.5 * 0.25)
        assert curve.hypervolume_on_test(TRIALS[:2], 0.90, drop=0.01) == 0

    def test_better_than_the_baseline_on_test_data_earns_no_more_than_as_good(self):
        assert curve.hypervolume_on_test([point(1, 0.9, 0.95, 0.5, 0.5)], 0.90) == pytest.approx(0.25)

    def test_two_points_cover_the_union_of_their_boxes(self):
        both = [point(1, 0.90, 0.90, 0.5, 0.5), point(2, 0.88, 0.88, 0.2, 0.2)]
        # 0.25 + 0.6 * 0.64 - 0.6 * 0.25
        assert curve.hypervolume_on_test(both, 0.90) == pytest.approx(0.484)
        assert curve.hypervolume_on_test(both, 0.90) == pytest.approx(hypervolume([(0, 0.5, 0.5), (0.02, 0.2, 0.2)]))

    def test_the_curve_over_time_may_fall_and_a_target_is_reached_when_it_first_is(self):
        found = curve.over_time(TRIALS, 0.90, budget_s=100)
        assert [seconds for seconds, _ in found] == [10, 20, 60]
        assert [value for _, value in found] == pytest.approx([0.0, 0.2, 0.144])
        assert curve.first_reach(found, 0.15) == 20
        assert curve.first_reach(found, 0.21) == float("inf")
        assert curve.first_reach(found, 0.0) == float("inf")

    def test_nothing_found_is_nothing(self):
        assert curve.at_shares([], 0.90, budget_s=100, shares=(0.5, 1.0)) == [0.0, 0.0]


class TestPaired:
    def test_the_mean_of_the_differences_is_the_ratio_of_the_means_also_with_a_crashed_run(self):
        found = paired.relative_differences([0.6, 0.6, 0.3], [0.5, 0.0, 0.5])
        assert found == pytest.approx([0.3, 1.8, -0.6])
        assert found.mean() == pytest.approx(1.5 / 1.0 - 1)
        assert len(paired.relative_differences([0.5], [0.0])) == 0

    def test_the_bootstrap_is_the_same_every_time_and_close_to_the_normal_interval(self):
        values = np.random.default_rng(1).normal(0.06, 0.05, 40)
        first, second = paired.bootstrap([values]), paired.bootstrap([values])
        assert first == second
        half = 1.96 * values.std() / np.sqrt(40)
        assert first.mean == pytest.approx(values.mean())
        assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)

    def test_every_task_counts_the_same_however_many_pairs_it_has(self):
        found = paired.bootstrap([[0.1] * 5, [0.3] * 50])
        assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))

    def test_few_pairs_have_a_mean_but_no_interval(self):
        found = paired.bootstrap([[0.1, 0.3]])
        assert found.mean == pytest.approx(0.2)
        assert np.isnan([found.low, found.high]).all()
        assert paired.bootstrap([[], []]) is None

    @pytest.mark.parametrize("count", [1, 2, 5, 9])
    def test_the_signed_rank_test_agrees_with_counting_all_signs(self, count):
        generator = np.random.default_rng(count)
        for _ in range(5):
            values = np.round(generator.normal(0.3, 1, count), 1)  # rounded: there are ties, and zeros
            assert paired.signed_rank_p(values) == pytest.approx(counted(values))

    def test_holm_never_lets_a_larger_p_become_smaller_than_a_smaller_one(self):
        found = paired.holm({"a": 0.04, "b": 0.01, "c": 0.03})
        assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})


def counted(values: np.ndarray) -> float:
    """The naive oracle: the two-sided p over all assignments of signs."""
    values = values[values != 0]
    if not len(values):
        return 1.0
    sizes = np.abs(values)
    ranks = np.array([(sizes < s).sum() + ((sizes == s).sum() + 1) / 2 for s in sizes])
    observed = ranks[values > 0].sum()
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(values))]
    above, below = np.mean(np.array(sums) >= observed), np.mean(np.array(sums) <= observed)
    return float(min(1.0, 2 * min(above, below)))


class TestContenders:
    @pytest.mark.parametrize("name", contenders.CONTENDERS)
    def test_only_known_keys_and_parts_are_set(self, name):
        settings = contenders.CONTENDERS[name].settings(120.0)
        assert set(settings) <= {*SearchConfig.model_fields, "sweep", "without"}
        assert settings["sampler"] in {"front", "knobs", "gp", "tpe", "nsga2", "random", "sweep"}
        assert set(settings.get("without", ())) <= set(contenders.PARTS)
        assert 0 <= settings.get("sweep", 0) <= 14

    @pytest.mark.skipif("without" not in SearchConfig.model_fields, reason="the schema has no switches for parts yet")
    @pytest.mark.parametrize("name", contenders.CONTENDERS)
    def test_the_schema_takes_what_is_written_on_the_command_line(self, name):
        settings = contenders.CONTENDERS[name].settings(120.0)
        texts = tuple(f"search.{key}={contenders.toml(value)}" for key, value in settings.items())
        config = load_config({}, name="x", overrides=texts)
        assert {key: getattr(config.search, key) for key in settings} == settings

    def test_a_sweep_divides_the_searching_time_equally_and_trains_for_a_second_at_least(self):
        sweep = contenders.CONTENDERS["sweep7"]
        beside = contenders.START_S + 7 * contenders.BESIDE_S
        assert sweep.settings(600)["train_s"] == pytest.approx((570 - beside) / 7, abs=0.05)
        assert contenders.CONTENDERS["sweep3"].settings(600)["train_s"] > 2 * sweep.settings(600)["train_s"]
        assert contenders.CONTENDERS["sweep14"].settings(60)["train_s"] == 1.0

    def test_every_part_has_an_ablation_that_leaves_out_that_part_alone(self):
        ablations = [c for c in contenders.CONTENDERS.values() if c.kind == "ablation"]
        assert [c.search["without"] for c in ablations] == [(part,) for part in contenders.PARTS]

    def test_baselines_have_nothing_of_the_engine_but_share_the_evaluator(self):
        for contender in contenders.CONTENDERS.values():
            if contender.kind == "baseline":
                without = set(contender.search["without"])
                assert {"surrogate", "ladder", "inherit", "blocks"} <= without
                assert not without & {"compensation", "stop"}
        helped = {c.name: c for c in contenders.CONTENDERS.values() if c.kind == "helped"}
        assert set(helped) == {"tpe_blocks", "tpe_warm_blocks"}
        for name, contender in helped.items():
            bare = contenders.CONTENDERS[name.removesuffix("_blocks")].search
            assert set(bare["without"]) - set(contender.search["without"]) == {"blocks"}
            assert {**bare, "without": ()} == {**contender.search, "without": ()}


class TestTasks:
    @pytest.mark.parametrize("name", ["residual", "depthwise", "plain"])
    @pytest.mark.parametrize("side", [14, 8])
    def test_a_network_gives_ten_logits_for_both_data_sets(self, name, side):
        network = getattr(tasks, name)()
        assert network.eval()(torch.zeros(2, 1, side, side)).shape == (2, 10)

    def test_the_networks_differ_in_structure(self):
        def layers(name: str) -> list[torch.nn.Conv2d]:
            return [m for m in getattr(tasks, name)().modules() if isinstance(m, torch.nn.Conv2d)]

        assert any(c.groups > 1 for c in layers("depthwise"))
        assert not any(c.groups > 1 for c in layers("residual") + layers("plain"))
        assert (len(layers("residual")), len(layers("plain"))) == (15, 6)  # 1 + 6 blocks of 2 + 2 projections

    @pytest.mark.parametrize("name", ["residual", "depthwise", "plain"])
    def test_a_task_is_a_valid_study_file_that_names_its_factories(self, name):
        config = load_config(read_toml(FOLDER / f"{name}.toml"), name=name)
        assert config.model.factory == f"tasks:{name}"
        assert callable(getattr(tasks, config.data.factory.removeprefix("tasks:")))

    def test_subsets_are_fixed_disjoint_and_half_the_size(self):
        whole = images(train=40, test=20)
        first, second = (tasks.subset(whole, train=20, val=10, test=8) for _ in range(2))
        held = tasks.held_out(whole, used=30, count=26)
        assert {name: tuple(x.shape) for name, (x, _) in first.items()} == {
            "train": (20, 1, 14, 14), "val": (10, 1, 14, 14), "test": (8, 1, 14, 14),
        }  # fmt: skip
        assert all(torch.equal(first[n][0], second[n][0]) for n in first)
        labels = {name: set(y.tolist()) for name, (_, y) in first.items()} | {"held": set(held[1].tolist())}
        assert len(labels["held"]) == len(held[0]) == 26
        assert labels["test"] <= labels["held"]
        assert not (labels["train"] | labels["val"]) & labels["held"]
        assert not labels["train"] & labels["val"]
        # the label of an image is its value everywhere, so images and labels still belong together
        assert all(torch.equal(x.mean((1, 2, 3)), y.float()) for x, y in [*first.values(), held])

    def test_the_digits_stand_in_with_a_warning_where_the_files_are_missing(self, monkeypatch):
        def missing() -> None:
            raise UsageError("Fashion-MNIST was not found")

        monkeypatch.setattr(tasks, "fashion_mnist", missing)
        with pytest.warns(UserWarning, match="digits are used instead"):
            data = tasks.small_images()
        with pytest.warns(UserWarning, match="digits are used instead"):
            judged = tasks.judged_images()
        assert data["train"][0].shape[1:] == (1, 8, 8)
        assert torch.equal(judged[1], data["test"][1])


def images(*, train: int, test: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images whose pixels are all their label, and no label twice."""
    labels = torch.arange(train + test)
    pixels = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    return {"train": (pixels[:train], labels[:train]), "test": (pixels[train:], labels[train:])}


class TestRun:
    def test_contenders_of_a_pair_run_side_by_side_in_an_order_of_their_own(self):
        names = ["ours", "sweep3", "tpe", "nsga2", "oneshot"]
        found = run.jobs(["residual", "plain"], names, [0, 1], 120.0)
        pairs = [(job.task, job.seed) for job in found[::5]]
        assert pairs == [("residual", 0), ("plain", 0), ("residual", 1), ("plain", 1)]
        orders = [[job.contender.name for job in found[i : i + 5]] for i in range(0, 20, 5)]
        assert all(sorted(order) == sorted(names) for order in orders)
        assert len({tuple(order) for order in orders}) > 1
        assert found == run.jobs(["residual", "plain"], names, [0, 1], 120.0)

    def test_rows_are_appended_and_a_run_in_the_file_is_known_by_its_key(self, tmp_path):
        job = run.Job(task="plain", contender=contenders.CONTENDERS["ours"], seed=3, budget_s=120.0)
        row = dict(zip(run.KEY, job.key, strict=True)) | {"error": 'a "quoted", one', "run": "r"}
        path = tmp_path / "runs.csv"
        run.append(path, run.RUN_COLUMNS, [row])
        run.append(path, run.RUN_COLUMNS, [row])
        rows = run.read_rows(path)
        assert [r["error"] for r in rows] == ['a "quoted", one'] * 2
        assert tuple(rows[0][name] for name in run.KEY) == job.key == ("plain", "ours", "3", "120")
        with pytest.raises(SystemExit, match="other columns"):
            run.append(path, run.TRIAL_COLUMNS, [])

    def test_points_are_relative_to_the_baseline_and_only_of_complete_trials(self):
        records = [
            trial(0, 0.9, 1000, 1.0, origin="baseline"), trial(1, 0.88, 250, 0.5), trial(2, None, 10, 0.1),
        ]  # fmt: skip
        points, dense = run.points_of(records, {0: 0.91, 1: 0.89})
        assert dense.trial == 0
        assert points == [point(0.0, 0.9, 0.91, 1.0, 1.0), point(1.0, 0.88, 0.89, 0.25, 0.5)]
        assert run.points_of(records[1:], {1: 0.89}) == ([], None)

    def test_a_run_that_crashed_has_a_hypervolume_of_0_whatever_it_left_behind(self):
        records = (trial(0, 0.9, 1000, 1.0, origin="baseline"), trial(1, 0.9, 500, 0.5))
        found = {
            error: run._summary(
                run.Outcome(study=None, trials=records, wall_s=1.0, exit_code=1, error=error), {0: 0.9, 1: 0.9}, 10.0
            )
            for error in ("", "exit code 1: it crashed")
        }
        assert (found[""]["hv_100"], found[""]["hv_val"], found[""]["complete"]) == ("0.25", "0.25", "2")
        crashed = found["exit code 1: it crashed"]
        assert {crashed[name] for name in (*run.HV_COLUMNS, "hv_val")} == {"0"}

    def test_what_is_published_names_no_folder_of_the_machine(self, tmp_path):
        text = run._without_paths(f"{tmp_path}/a.onnx of {FOLDER} broke", tmp_path)
        assert text == "WORKSPACE/a.onnx of CHECKOUT/studies/search_benchmark broke"

    def test_settings_that_this_version_does_not_know_are_refused_before_anything_runs(self):
        odd = contenders.Contender(name="odd", kind="baseline", what="", search={"sampler": "nonsense"})
        with pytest.raises(SystemExit, match=r"cannot run odd: search.sampler"):
            run.check([run.Job(task="plain", contender=odd, seed=0, budget_s=60.0)])


def trial(number: int, val: float | None, size: int, ratio: float, *, origin: str = "search") -> TrialRecord:
    latency = Latency(latency_ms=ratio, ratio=ratio, ratio_ci=(ratio, ratio), blocks=1)
    return TrialRecord(
        trial=number, origin=origin, plan=CompressionPlan(), spent_s=float(number), artifact="model.onnx",
        state=TrialState.COMPLETE if val is not None else TrialState.STOPPED,
        measurement=Measurement(val=val, size_bytes=size, compressed_bytes=size, latency=latency, params=1, macs=1),
    )  # fmt: skip


# Final size and latency ratio of the one artifact of a run, so that its hypervolume is the product of (1 - ratio).
Result = tuple[str, str, int, float, float, float]


def written(
    folder: Path, results: Sequence[Result], *, crashed: Sequence[tuple[str, str, int]] = (), budget: str = "100"
) -> Path:
    """CSV files of made-up runs: (task, contender, seed, seconds, size ratio, latency ratio)."""
    folder.mkdir(exist_ok=True)
    for task, name, seed, seconds, size, latency in results:
        of_run = f"{task}-{budget}-{name}-{seed}"
        key = {"task": task, "contender": name, "seed": str(seed), "budget_s": budget, "run": of_run}
        trials = [(1.0, 1.0, 1.0, "baseline"), (seconds, size, latency, "search")]
        rows = [
            {**key, "trial": str(i), "origin": origin, "state": "complete", "spent_s": str(s), "val": "0.9",
             "test": "0.9", "size_ratio": str(x), "latency_ratio": str(y), "contended": "0"}
            for i, (s, x, y, origin) in enumerate(trials)
        ]  # fmt: skip
        run.append(folder / "trials.csv", run.TRIAL_COLUMNS, rows)
        run.append(folder / "runs.csv", run.RUN_COLUMNS, [{**key, "base_test": "0.9", "hv_val": "0.5", "commit": "c"}])
    for task, name, seed in crashed:
        key = {"task": task, "contender": name, "seed": str(seed), "budget_s": "100", "run": f"{task}-{name}-{seed}"}
        run.append(folder / "runs.csv", run.RUN_COLUMNS, [{**key, "error": "exit code 1: it crashed"}])
    return folder


def report_of(folder: Path) -> str:
    rows, trial_rows = run.read_rows(folder / "runs.csv"), run.read_rows(folder / "trials.csv")
    text: str = analyse.report(rows, trial_rows, date="2026-01-01")
    return text


class TestAnalyse:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """On `a` sweep3 is the best baseline (0.4), on `b` tpe (0.5); ours has 0.48 and 0.6, five times as soon."""
        results: list[Result] = []
        for seed in range(5):
            results += [("a", "sweep3", seed, 90, 0.5, 0.2), ("a", "tpe", seed, 90, 0.5, 0.6)]
            results += [("b", "sweep3", seed, 80, 0.5, 0.6), ("b", "tpe", seed, 80, 0.5, 0.0)]
            results += [("a", "ours", seed, 15, 0.4, 0.2), ("b", "ours", seed, 16, 0.4, 0.0)]
        return written(tmp_path, results)

    def collected(self, folder: Path) -> Any:
        return side_by_side.collect(run.read_rows(folder / "runs.csv"), run.read_rows(folder / "trials.csv"))

    def test_the_best_baseline_is_that_of_each_task(self, folder):
        runs = self.collected(folder)
        assert side_by_side.best_baselines(runs) == {"a": "sweep3", "b": "tpe"}
        compared = side_by_side.compare(runs, {"a": "sweep3", "b": "tpe"})
        assert compared.interval.mean == pytest.approx(0.2)
        assert (compared.pairs, compared.wins) == (10, 1.0)
        assert compared.p == pytest.approx(2 / 2**10)

    def test_a_speed_up_is_against_the_baselines_own_time_to_its_final_value(self, folder):
        found = side_by_side.speed_ups(self.collected(folder), {"a": "sweep3", "b": "tpe"})
        assert found == {"a": [pytest.approx(6.0)] * 5, "b": [pytest.approx(5.0)] * 5}

    def test_the_report_says_whether_the_criteria_were_met(self, folder):
        text = report_of(folder)
        assert "ours has +20.0 % [+20.0, +20.0] more hypervolume" in text
        assert text.count("**met**") == 2
        assert "| ours | 10 | 0.000 | 0.000 | 0.540 |" in text

    def test_a_baseline_with_a_part_of_the_engine_is_told_beside_the_answer(self, folder):
        assert "Beside the question" not in report_of(folder)
        written(folder, [("b", "tpe_blocks", seed, 80, 0.2, 0.0) for seed in range(5)])  # 0.8, where ours has 0.6
        text = report_of(folder)
        assert "ours has +20.0 % [+20.0, +20.0] more hypervolume" in text
        assert text.count("**met**") == 2
        assert "(sweep3 on a, tpe_blocks on b) it is -2.5 % [-2.5, -2.5]" in text  # +20 % and -25 %

    def test_ours_is_compared_with_baselines_that_had_more_time(self, folder):
        assert "against the baselines in" not in report_of(folder)
        written(folder, [(task, "ours", seed, 9, 0.4, 0.2) for task in "ab" for seed in range(5)], budget="10")
        text = report_of(folder)
        assert text.count("against the baselines in") == 1
        last = text.split("## Ours in 10 s against the baselines in 100 s")[1]
        # 0.48 on both, where sweep3 has 0.4 on `a` and tpe 0.5 on `b`, after 90 and 80 s
        assert "has +8.0 % [+8.0, +8.0] more" in last
        assert "over 10 pairs, of which it is ahead in 50%. It had their final value 5.0 times sooner" in last
        assert "| a | 0.480 | sweep3 | 0.400 | [+20.0, +20.0] | 100% |" in last
        assert "| b | 0.480 | tpe | 0.500 | [-4.0, -4.0] | 0% |" in last
        assert "| a | sweep3 | 10.0 | 5 of 5 |" in last
        assert "| b | tpe | 0.0 | 0 of 5 |" in last

    def test_a_crashed_run_of_ours_counts_as_0_and_is_named(self, folder):
        written(folder, [], crashed=[("a", "ours", 5)])
        written(folder, [("a", "sweep3", 5, 90, 0.5, 0.2)])
        text = report_of(folder)
        assert "a ours seed 5 counts as 0: exit code 1: it crashed" in text
        runs = self.collected(folder)
        # five pairs of +20 %, one of -100 %
        assert np.mean(side_by_side.compare(runs, {"a": "sweep3"}).differences["a"]) == pytest.approx(0.0)
        assert side_by_side.speed_ups(runs, {"a": "sweep3"})["a"][-1] == 0.0

    def test_missing_contenders_seeds_and_tasks_are_named_and_left_out(self, tmp_path):
        only = written(tmp_path / "only", [("a", "ours", 0, 10, 0.5, 0.5)])
        assert "Nothing to judge" in report_of(only)
        none = written(tmp_path / "none", [("a", "tpe", 0, 10, 0.5, 0.5), ("b", "sweep3", 0, 10, 0.5, 0.5)])
        assert "2 runs are missing: a sweep3 0, b tpe 0." in report_of(none)
        few = report_of(written(tmp_path / "few", [("a", "ours", 0, 10, 0.4, 0.5), ("a", "tpe", 0, 20, 0.5, 0.5)]))
        assert "too few pairs for a verdict, ahead in the mean on 1 of 1 tasks" in few
        assert "5 times was asked: too few pairs for a verdict" in few
        assert "**met**" not in few

    def test_trials_of_a_run_without_a_row_are_not_read(self, folder):
        rows = run.read_rows(folder / "trials.csv")
        lost = [{**row, "run": "interrupted", "size_ratio": "0.001", "latency_ratio": "0.001"} for row in rows]
        run.append(folder / "trials.csv", run.TRIAL_COLUMNS, lost)
        assert self.collected(folder)["a", "ours", 0].final() == pytest.approx(0.48)

    def test_the_command_writes_the_report_of_a_folder(self, folder, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["analyse.py", "--results", str(folder), "--out", str(folder / "r.md")])
        assert analyse.main() == 0
        assert (folder / "r.md").read_text().startswith("# The search benchmark, ")
        assert capsys.readouterr().out.strip().endswith("r.md")


def test_how_proposals_ended_is_counted_for_each_contender_without_anchors_and_the_last_stage():
    def row(state: str, *, origin: str = "search", train_s: str = "", reason: str = "", run_of: str = "r") -> dict:
        return {
            "run": run_of,
            "contender": "ours",
            "origin": origin,
            "state": state,
            "train_s": train_s,
            "reason": reason,
        }

    rows = [
        row("complete", train_s="2.4"), row("stopped", train_s="0.0", reason="size and latency"),
        row("infeasible", train_s="0.0", reason="larger than max_size"),
        row("stopped", train_s="1.1", reason="after 40% of its training it lost 0.2"),
        row("stopped", reason="too little time was left to train it"), row("failed"),
        row("complete", origin="anchor"), row("complete", origin="final"), row("complete", run_of="another budget"),
    ]  # fmt: skip
    assert analyse._ends({"r"}, rows).splitlines()[-1] == "| ours | 6 | 1 | 2 | 1 | 1 | 1 |"


def test_the_columns_of_the_files_are_named_once():
    for columns in (run.RUN_COLUMNS, run.TRIAL_COLUMNS):
        assert len(set(columns)) == len(columns)
    assert run.HV_COLUMNS == ("hv_005", "hv_010", "hv_020", "hv_035", "hv_050", "hv_075", "hv_100")


def test_every_contender_is_in_the_protocol():
    text = (FOLDER / "PROTOCOL.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in contenders.CONTENDERS)


def test_published_rows_name_no_folder_of_a_machine():
    published = sorted((FOLDER / "results").rglob("*.csv"))
    assert published
    for path in published:
        with path.open(newline="", encoding="utf-8") as file:
            assert not [row for row in csv.reader(file) if any("/home/" in cell or "/root/" in cell for cell in row)]


def test_what_a_row_says_of_the_machine_can_be_found_out():
    facts = run._machine()
    assert facts["processor"]
    assert int(facts["cores"]) >= 1


# -- what a search reaches that knows its plans


def trained(number: int, test: float, size: int, latency: float) -> tuple[TrialRecord, float]:
    measured = Measurement(
        val=0.9,
        size_bytes=size,
        compressed_bytes=size,
        latency=Latency(latency_ms=latency, ratio=latency, ratio_ci=(latency, latency), blocks=1),
        params=1,
        macs=1,
    )
    plan = CompressionPlan(prune_ratio={"a": number / 10} if number else {}, weight_bits={"a": 4} if number else {})
    origin = "search" if number else "baseline"
    return TrialRecord(trial=number, state=TrialState.COMPLETE, plan=plan, origin=origin, measurement=measured), test


def test_known_plans_are_those_that_add_most_to_the_ones_before():
    """The second adds nothing to the first, which beats it; the fourth would add most, and has no test value."""
    parts = [trained(0, 0.9, 1000, 1.0), trained(1, 0.9, 100, 0.3), trained(2, 0.899, 200, 0.31)]
    parts += [trained(3, 0.88, 300, 0.1), trained(4, 0.9, 10, 0.1)]
    trials, tests = [t for t, _ in parts], {t.trial: test for t, test in parts if t.trial != 4}
    plans = known.most_together(trials, tests, 2)
    assert [plan.prune_ratio["a"] for plan in plans] == [0.1, 0.3]
    assert len(known.most_together(trials, tests, 9)) == 3


def test_known_plans_are_trained_for_equal_shares_of_the_time_that_is_left(monkeypatch):
    now, trained_s = [100.0], []

    def evaluate(plan: CompressionPlan, *, train_s: float, **_: Any) -> None:
        trained_s.append(train_s)
        now[0] += train_s + 2.0

    monkeypatch.setattr(known.time, "monotonic", lambda: now[0])
    driver = object.__new__(known.KnownDriver)
    driver.plans, driver.evaluate, driver.overhead_s = [CompressionPlan()] * 3, evaluate, lambda: 2.0
    monkeypatch.setattr(known.KnownDriver, "end", property(lambda _: 130.5))
    driver._search()
    assert trained_s == [pytest.approx(8.0)] * 3
    assert now[0] == pytest.approx(130.0)
    driver._search()
    assert len(trained_s) == 3, "no time is left"


def test_a_search_that_knows_its_plans_has_settings_that_exist():
    settings = known.contender(2).settings(24.0)
    assert load_config({"search": settings}, name="x", origin="x").search.sweep == 0
