"""autocompress from Python: what loads when, reading a study, choosing a point, and starting a search."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_study import example_record, example_trial, example_trials, write_example

import autocompress
from autocompress.api import front_trials
from autocompress.errors import ConstraintError, NotFoundError, UsageError
from autocompress.front.summary import front_document, front_points
from autocompress.records import StudyState, TrialState
from autocompress.study.store import StudyStore

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_else():
    modules = run_python("import sys, autocompress; print(*sys.modules)").split()
    loaded = {name.partition(".")[0] for name in modules}
    assert loaded.isdisjoint({"torch", "numpy", "pydantic", "sqlalchemy", "optuna", "typer", "rich"})
    assert [m for m in modules if m.startswith("autocompress.")] == []


def test_every_public_name_exists_and_an_unknown_one_is_an_attribute_error():
    for name in autocompress.__all__:
        assert getattr(autocompress, name) is not None
    assert set(autocompress.__all__) <= set(dir(autocompress))
    with pytest.raises(AttributeError, match="serach"):
        _ = autocompress.serach
    assert isinstance(autocompress.__version__, str)


@pytest.mark.parametrize("first", ["", "import autocompress.search", "import autocompress; autocompress.search"])
def test_search_can_be_called_whether_or_not_the_folder_of_that_name_was_imported(first):
    code = (
        f"{first}\nimport autocompress\nimport sys, types, importlib\n"
        "if not sys.modules.get('autocompress.search'):\n"
        "    sub = types.ModuleType('autocompress.search')\n"
        "    sys.modules['autocompress.search'] = sub\n"
        "    autocompress.search = sub  # what the import system does\n"
        "try:\n    autocompress.search(None, None, metric='nonsense')\n"
        "except autocompress.AutocompressError as error:\n    print(error)\n"
    )
    if "import autocompress.search" in first and not (ROOT / "autocompress/search/__init__.py").exists():
        pytest.skip("the folder is not there yet")
    assert "unknown metric 'nonsense'" in run_python(code)


def test_a_study_is_read_with_its_front_and_trials(tmp_path):
    record = write_example(tmp_path)
    result = autocompress.open_study("digits", tmp_path)
    assert result.record == record
    assert result.trials == example_trials()
    assert [p.trial for p in result.front] == [1, 2, 0]


def test_the_workspace_of_the_environment_is_the_default(tmp_path, monkeypatch):
    write_example(tmp_path / "there")
    monkeypatch.setenv("AUTOCOMPRESS_WORKSPACE", str(tmp_path / "there"))
    assert autocompress.open_study("digits").record.name == "digits"
    monkeypatch.delenv("AUTOCOMPRESS_WORKSPACE")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="autocompress-runs"):
        autocompress.open_study("digits")


def test_an_unknown_study_is_an_error_at_once(tmp_path):
    write_example(tmp_path)
    with pytest.raises(NotFoundError, match="did you mean 'digits'"):
        autocompress.open_study("digit", tmp_path)


def test_the_front_found_from_columns_is_the_front_found_from_records(tmp_path):
    rng = np.random.default_rng(0)
    record = example_record()
    # Few distinct values, so that there are ties in every objective and equal points.
    trials = [
        example_trial(n, float(rng.integers(1, 6)) / 10, int(rng.integers(1, 6)), float(rng.integers(1, 6)) / 5)
        for n in range(300)
    ]
    trials[7] = replace(trials[7], state=TrialState.STOPPED)
    with StudyStore(tmp_path) as store:
        store.create(record)
        store.add_trials("digits", trials)
        found = front_trials(store, record)
    assert {t.trial for t in found} == {p.trial for p in front_points(record, trials)}
    assert len(found) < 100


def test_for_a_metric_that_is_minimised_less_is_better(tmp_path):
    record = example_record()
    assert record.baseline is not None
    record = replace(record, config={"task": {"metric": "mse"}}, baseline=replace(record.baseline, metric="mse"))
    with StudyStore(tmp_path) as store:
        store.create(record)
        store.add_trials("digits", [example_trial(0, 0.2, 100, 1.0), example_trial(1, 0.3, 100, 1.0)])
        assert [t.trial for t in front_trials(store, record)] == [0]


def test_objectives_that_the_study_does_not_have_do_not_count(tmp_path):
    record = example_record(objectives=("accuracy", "size"))
    with StudyStore(tmp_path) as store:
        store.create(record)
        store.add_trials("digits", example_trials())
        assert [t.trial for t in front_trials(store, record)] == [0, 1], "trial 2 was there for its latency"


def test_the_document_of_the_front_is_that_of_all_trials(tmp_path):
    record = write_example(tmp_path)
    assert autocompress.open_study("digits", tmp_path).document() == front_document(record, example_trials())


@pytest.mark.parametrize(
    ("limits", "trial"),
    [
        ({"minimize": "size"}, 1),
        ({"minimize": "latency"}, 2),
        ({"minimize": "accuracy"}, 0),
        ({"minimize": "latency", "max_drop": 0.006}, 1),
        ({"minimize": "latency", "max_size": "150kB"}, 1),
        ({"minimize": "accuracy", "max_size": 150_000}, 1),
        ({"minimize": "size", "max_latency": 0.15}, 2),
        ({"pick": "trial:0"}, 0),
    ],
)
def test_best_keeps_the_limits_and_minimises_the_rest(tmp_path, limits, trial):
    write_example(tmp_path)
    assert autocompress.open_study("digits", tmp_path).best(**limits).point.trial == trial


def test_best_says_what_is_wrong(tmp_path):
    write_example(tmp_path)
    result = autocompress.open_study("digits", tmp_path)
    with pytest.raises(ConstraintError, match="nearest"):
        result.best(max_size=10)
    with pytest.raises(UsageError, match="minimize must be one of"):
        result.best(minimize="bytes")
    with pytest.raises(UsageError, match="50kB"):
        result.best(max_size="tiny")
    with pytest.raises(UsageError, match="not both"):
        result.best(minimize="size", pick="knee")


def test_best_of_a_study_without_baseline_says_how_to_continue(tmp_path):
    with StudyStore(tmp_path) as store:
        store.create(example_record(baseline=None, state=StudyState.INTERRUPTED))
    with pytest.raises(UsageError, match="autocompress resume digits"):
        autocompress.open_study("digits", tmp_path).best()


def test_export_hands_point_study_and_folders_to_the_bundle(tmp_path, monkeypatch):
    write_example(tmp_path)
    calls = []
    module = types.ModuleType("autocompress.bundle")
    module.write_bundle = lambda point, study, *, workspace, out: calls.append((point, study, workspace, out))
    module.check_target = lambda out: out
    monkeypatch.setitem(sys.modules, "autocompress.bundle", module)
    result = autocompress.open_study("digits", tmp_path)
    assert result.best(minimize="size").export(str(tmp_path / "out")) == tmp_path / "out"
    assert calls == [(result.front[0], result.record, tmp_path, tmp_path / "out")]


@pytest.fixture
def searches(monkeypatch):
    """Stands in for the engine: stores the example under the configured name and remembers what it was given."""
    calls = []

    def search_study_object(config, *, model, data, workspace, listener):
        calls.append((config, model, data))
        record = example_record(config.name)
        write_example(workspace, record)
        listener(example_trials()[0])
        return record

    module = types.ModuleType("autocompress.study.run")
    module.search_study_object = search_study_object
    monkeypatch.setitem(sys.modules, "autocompress.study.run", module)
    return calls


def test_search_makes_a_configuration_of_its_arguments(tmp_path, searches):
    events = []
    result = autocompress.search(
        "model",
        {"train": 1},
        budget="3m",
        workspace=tmp_path,
        metric="f1",
        max_drop=0.02,
        max_size="50kB",
        seed=5,
        settings={"space": {"weight_bits": [4, 8]}, "search": {"batch_size": 32, "seed": 1}},
        listener=events.append,
    )
    config, model, data = searches[0]
    assert (model, data) == ("model", {"train": 1})
    search = config.search
    assert (search.budget, search.max_drop, search.max_size, search.seed) == (180.0, 0.02, 50_000, 5)
    assert search.batch_size == 32
    assert search.max_latency is None
    assert config.task.metric == "f1"
    assert config.space.weight_bits == (4, 8)
    assert [p.trial for p in result.front] == [1, 2, 0]
    assert events == [example_trials()[0]]


def test_searches_without_a_name_get_the_next_free_one(tmp_path, searches):
    names = [autocompress.search(None, None, workspace=tmp_path).name for _ in range(3)]
    assert names == ["search", "search-2", "search-3"]
    assert searches[0][0].search.budget == 600.0


def test_a_wrong_setting_is_a_usage_error_before_anything_starts(tmp_path, searches):
    with pytest.raises(UsageError, match="did you mean 'weight_bits'"):
        autocompress.search(None, None, workspace=tmp_path, settings={"space": {"wight_bits": [4]}})
    assert searches == []
    assert list(tmp_path.iterdir()) == []
