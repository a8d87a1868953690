"""The command line's contract: verbs, exit codes, and what goes to stdout and stderr. The engine is a stand-in."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import types
from dataclasses import replace
from pathlib import Path

import pytest
from example_study import example_record, example_trials, write_example
from rich.console import Console

from autocompress import cli, terminal
from autocompress.config import StudyConfig, load_config
from autocompress.errors import BudgetError, DeviceError, UsageError
from autocompress.records import Progress, StudyState, TrialState
from autocompress.study.store import StudyStore
from autocompress.terminal import LiveView, RunningFront

ROOT = Path(__file__).resolve().parents[1]
VERBS = (
    *("search", "resume", "cancel", "list", "show", "front"),
    *("export", "report", "serve", "devices", "doctor", "init", "schema"),
)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace with one finished study; variables of the outside do not reach the tests."""
    for variable in [v for v in os.environ if v.startswith("AUTOCOMPRESS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    write_example(folder)
    return folder


class Engine:
    """Takes the place of `study/run.py`: stores the example under the name asked for, and tells the listener."""

    def __init__(self, monkeypatch):
        self.config: StudyConfig | None = None
        self.base: Path | None = None
        self.state = StudyState.FINISHED
        self.error: BaseException | None = None
        module = types.ModuleType("autocompress.study.run")
        module.search_study = self.search_study
        module.resume_study = self.resume_study
        monkeypatch.setitem(sys.modules, "autocompress.study.run", module)

    def search_study(self, config, *, workspace, base, listener):
        self.config, self.base = config, base
        if self.error:
            raise self.error
        record = replace(
            example_record(config.name),
            state=self.state,
            config=config.model_dump(mode="json"),
            seed=config.search.seed,
        )
        write_example(workspace, record)
        listener(Progress(stage="search", message="anchors", spent_s=3.0, budget_s=120.0))
        for trial in example_trials():
            listener(trial)
        return record

    def resume_study(self, name, *, workspace, listener):
        if self.error:
            raise self.error
        listener(Progress(stage="final", message="training longer", spent_s=100.0, budget_s=120.0))
        with StudyStore(workspace) as store:
            return store.update(name, state=self.state)


@pytest.fixture
def engine(monkeypatch):
    return Engine(monkeypatch)


def call(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


def document(text: str):
    """The one JSON document that a text is."""
    assert text.count("\n") == 1, "one line"
    return json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


# -- help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_ends_in_an_example_of_itself(verb, capsys):
    assert call(verb, "--help") == 0
    output = capsys.readouterr()
    assert output.err == ""
    last = " ".join(output.out.split("Example: ")[-1].split())
    assert last.startswith(f"autocompress {verb}")
    assert "Example: " in output.out


def test_the_help_lists_every_verb_with_a_whole_sentence(capsys):
    assert call("--help") == 0
    listed = re.findall(r"^  ([a-z]+) {2,}(\S.*)$", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE)
    assert {verb for verb, _ in listed} == set(VERBS)
    assert all(text.endswith(".") and not text.endswith("...") for _, text in listed)


def test_no_verb_is_a_usage_error_that_shows_the_help_on_stderr(capsys):
    assert call() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Commands:" in output.err


HEAVY = (
    "torch",
    "optuna",
    "sqlalchemy",
    "plotly",
    "onnx",
    "onnxruntime",
    "sklearn",
    "jinja2",
    "torchvision",
    "onnxscript",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["search", "--help"], ["front", "digits"], ["show", "digits"], ["list"]]
)
def test_reading_and_help_do_not_import_the_heavy_libraries(workspace, arguments):
    code = (
        "import sys; from autocompress.cli import run;"
        f" print(run({arguments!r}), *sorted(sys.modules), file=sys.stderr)"
    )
    environment = {**os.environ, "AUTOCOMPRESS_WORKSPACE": str(workspace)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    status, *modules = done.stderr.split()
    assert status == "0"
    assert set(modules).isdisjoint(HEAVY)
    if "--help" in arguments:
        assert set(modules).isdisjoint({"numpy", "rich.console"})


# -- mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nope"], 2, "nope"),
        (["front"], 2, "STUDY"),
        (["search", "--max-size", "50kB"], 2, "--set search.max_size=VALUE"),
        (["front", "digits", "--colour"], 2, "--colour"),
        (["search", "--seed", "many"], 2, "valid integer"),
        (["front", "digit"], 4, "did you mean 'digits'"),
        (["show", "digits", "--trial", "99"], 4, "trial 99"),
        (["show", "digits", "--trial", "9223372036854775808"], 2, "--trial"),
        (["resume", "digit"], 4, "did you mean 'digits'"),
        (["cancel", "digit"], 4, "did you mean 'digits'"),
        (["report", "digit"], 4, "did you mean 'digits'"),
        (["export", "digits", "--pick", "trial:3"], 4, "trial 3 is not on the front"),
        (["export", "digits", "--pick", "best"], 2, "knee"),
        (["export", "digits", "--max-size", "tiny"], 2, "50kB"),
        (["export", "digits", "--max-size", "1kB"], 3, "nearest"),
        (["search", "digits"], 2, "autocompress resume digits"),
        (["search", "digitz", "--name", "x"], 4, "did you mean 'digits'"),
        (["search", "none.toml"], 2, "none.toml"),
        (["search", "digits", "--name", "x", "--budget", "soon"], 2, "90s"),
        (["search", "digits", "--name", "x", "--set", "space.wight_bits=[4]"], 2, "weight_bits"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_with_its_exit_code(workspace, engine, capsys, arguments, code, expected):
    extra = ["--workspace", str(workspace)] if arguments[0] != "nope" else []
    assert call(*arguments, *extra) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert expected in output.err


@pytest.mark.parametrize("name", ["a/b", "../x", "x" * 300])
def test_a_name_that_is_no_folder_is_refused_before_anything_is_made(tmp_path, capsys, name):
    assert call("search", "digits", "--name", name, "--workspace", tmp_path / "runs") == 2
    assert "a study's name is letters" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_printed_to_type_next_names_a_workspace_of_ones_own(workspace, engine, capsys):
    assert call("search", "digits", "--name", "one", "--workspace", workspace) == 0
    assert f"next: autocompress report one --workspace {workspace}\n" in capsys.readouterr().out
    assert call("search", "digits", "--workspace", workspace) == 2
    assert f"`autocompress resume digits --workspace {workspace}`" in capsys.readouterr().err
    engine.error = KeyboardInterrupt()
    assert call("search", "digits", "--name", "two", "--workspace", workspace) == 130
    assert f"`autocompress resume two --workspace {workspace}`" in capsys.readouterr().err
    engine.error, engine.state = None, StudyState.INTERRUPTED
    assert call("resume", "one", "--workspace", workspace) == 130
    assert f"`autocompress resume one --workspace {workspace}`" in capsys.readouterr().err
    assert cli._flags(Path("autocompress-runs")) == ""
    assert cli._flags(Path("my runs"), "http://x") == " --server http://x --workspace 'my runs'"


def test_an_existing_study_of_another_name_hints_at_resume(workspace, engine, capsys):
    with StudyStore(workspace) as store:
        store.create(example_record("mine"))
    assert call("search", "mine", "--workspace", workspace) == 2
    assert "autocompress resume mine" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["front", "show", "resume", "cancel", "export", "report"])
def test_a_workspace_without_studies_says_how_to_start(verb, engine, tmp_path, capsys):
    assert call(verb, "digits", "--workspace", tmp_path / "none") == 4
    assert "autocompress search" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_list_of_an_empty_workspace_is_empty_and_no_error(tmp_path, capsys):
    assert call("list", "--json", "--workspace", tmp_path / "none") == 0
    assert document(capsys.readouterr().out)["studies"] == []
    assert call("list", "--workspace", tmp_path / "none") == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "autocompress search" in output.err


def test_our_own_bug_is_a_traceback_and_exit_code_1(workspace):
    code = (
        "import autocompress.cli as c\n"
        "def broken(*a, **k): raise RuntimeError('ours')\n"
        "c._study_rows = broken\n"
        "c.sys.argv = ['autocompress', 'list']\n"
        "c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: ours" in done.stderr


# -- searching


def test_search_prints_progress_on_stderr_and_the_front_on_stdout(workspace, engine, capsys):
    assert call("search", "digits", "--name", "one", "--workspace", workspace) == 0
    output = capsys.readouterr()
    assert "search: anchors (3.0 s of 2.0 min)" in output.err
    lines = [line for line in output.err.splitlines() if line.startswith("trial")]
    assert len(lines) == len(example_trials())
    assert lines[1].endswith("on front")
    assert "140 kB" in lines[1]
    assert "on front" not in lines[3]
    assert lines[4].endswith("cannot reach the front")
    assert "7.1x smaller" in output.out
    assert "artifacts/digits/trial-1/model.onnx" in output.out
    assert "next: autocompress export one" in output.out
    assert "trial    4" not in output.out


def test_search_json_is_one_document_in_the_shape_of_the_contract(workspace, engine, capsys):
    assert call("search", "digits", "--name", "one", "--seed", "7", "--json", "--workspace", workspace) == 0
    printed = document(capsys.readouterr().out)
    assert printed["study"] == "one"
    assert printed["seed"] == 7
    assert [p["trial"] for p in printed["front"]] == [1, 2, 0]
    assert printed["trials"]["total"] == 6
    assert (printed["trials"]["complete"], printed["trials"]["stopped"], printed["trials"]["failed"]) == (4, 1, 1)


def test_flags_win_over_set_over_environment_over_file(workspace, engine, monkeypatch, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[search]\nbudget = '1m'\nseed = 1\nmax_trials = 1\nbatch_size = 32\n[task]\nmetric = 'f1'\n")
    monkeypatch.setenv("AUTOCOMPRESS_SEARCH__SEED", "2")
    monkeypatch.setenv("AUTOCOMPRESS_SEARCH__MAX_TRIALS", "2")
    monkeypatch.setenv("AUTOCOMPRESS_SEARCH__BUDGET", "2m")
    monkeypatch.setenv("AUTOCOMPRESS_WORKSPACE", str(workspace))
    sets = ["--set", "search.max_trials=3", "--set", "search.budget=3m", "--set", "space.weight_bits=[4,8]"]
    assert call("search", path, *sets, "--budget", "4m") == 0
    assert engine.config is not None
    search = engine.config.search
    assert (search.batch_size, search.seed, search.max_trials, search.budget) == (32, 2, 3, 240.0)
    assert engine.config.task.metric == "f1"
    assert engine.config.space.weight_bits == (4, 8)
    assert engine.config.name == "mine"
    assert engine.base == tmp_path
    with StudyStore(workspace, readonly=True) as store:
        assert "mine" in store.names()


def test_a_variable_that_names_no_key_is_an_error_naming_it(workspace, engine, monkeypatch, capsys):
    monkeypatch.setenv("AUTOCOMPRESS_SEARCH__BUGDET", "1m")
    assert call("search", "digits", "--name", "x", "--workspace", workspace) == 2
    error = capsys.readouterr().err
    assert "AUTOCOMPRESS_SEARCH__BUGDET" in error
    assert "AUTOCOMPRESS_SEARCH__BUDGET" in error


def test_constraints_that_nothing_meets_give_3_and_still_print_the_front(workspace, engine, capsys):
    arguments = ["search", "digits", "--name", "one", "--set", "search.max_size=1kB", "--json"]
    assert call(*arguments, "--workspace", workspace) == 3
    output = capsys.readouterr()
    assert len(document(output.out)["front"]) == 3
    assert "error: no artifact meets the constraints" in output.err


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("no; do"), 2), (DeviceError("no; do"), 5), (BudgetError("no; do"), 6)]
)
def test_the_engine_s_errors_have_their_exit_codes(workspace, engine, capsys, error, code):
    engine.error = error
    assert call("search", "digits", "--name", "one", "--workspace", workspace) == code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "error: no; do\n")


@pytest.mark.parametrize("verb", [["search", "digits", "--name", "digits-2"], ["resume", "digits"]])
def test_an_interrupt_gives_130_and_the_command_to_continue(workspace, engine, capsys, verb):
    engine.error = KeyboardInterrupt()
    assert call(*verb, "--workspace", workspace) == 130
    output = capsys.readouterr()
    assert output.out == ""
    assert f"autocompress resume {verb[-1]}" in output.err


def test_a_search_that_was_cancelled_gives_130_with_what_it_found(workspace, engine, capsys):
    engine.state = StudyState.INTERRUPTED
    assert call("resume", "digits", "--json", "--workspace", workspace) == 130
    output = capsys.readouterr()
    assert document(output.out)["state"] == "interrupted"
    assert "autocompress resume digits" in output.err


def test_a_termination_signal_ends_a_search_like_ctrl_c(workspace, engine):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BaseException, match="130") as caught, cli._interruptible("digits"):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_resume_judges_new_trials_against_those_already_there(workspace, engine, capsys):
    def resume_study(name, *, workspace, listener):
        listener(replace(example_trials()[3], trial=6))
        with StudyStore(workspace, readonly=True) as store:
            return store.study(name)

    sys.modules["autocompress.study.run"].resume_study = resume_study
    assert call("resume", "digits", "--workspace", workspace) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("trial"))
    assert "on front" not in line, "trial 1, from before, is better in everything"


# -- looking


def test_front_json_is_one_document_and_nothing_else(workspace, capsys):
    assert call("front", "digits", "--json", "--workspace", workspace) == 0
    output = capsys.readouterr()
    printed = document(output.out)
    assert output.err == ""
    assert {"study", "state", "seed", "objectives", "budget_s", "spent_s", "device", "trials", "baseline"} <= set(
        printed
    )
    assert printed["front"][0]["plan"]["weight_bits"] == {"conv1": 4}


def test_what_is_not_a_number_is_null_in_json(capsys):
    cli._print_json({"a": float("nan"), "b": [float("inf"), 1.5]})
    assert document(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_a_pipe_gets_whole_lines_without_colour(workspace, capsys):
    assert call("front", "digits", "--workspace", workspace) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("\x1b" in line for line in lines)
    row = next(line for line in lines if line.startswith("1 "))
    assert "140 kB" in row
    assert row.rstrip().endswith("artifacts/digits/trial-1/model.onnx")


def test_show_tells_groups_skips_counts_and_the_budget(workspace, capsys):
    assert call("show", "digits", "--workspace", workspace) == 0
    text = capsys.readouterr().out
    for part in (
        "conv1, conv2",
        "left alone (prune): fc: its outputs are the classes",
        "6 trials: 4 complete, 1 stopped, 1 failed",
        "1 stopped: cannot reach the front",
        "search 90 s",
        "weight_bits=",
    ):
        assert part in text
    assert call("show", "digits", "--json", "--workspace", workspace) == 0
    printed = document(capsys.readouterr().out)
    assert printed["study"]["facts"]["groups"][0]["channels"] == 16
    assert printed["trials"]["failed"] == 1
    assert printed["pid"] is None


def test_show_of_a_trial_tells_plan_widths_times_and_reason(workspace, capsys):
    assert call("show", "digits", "--trial", 1, "--workspace", workspace) == 0
    text = capsys.readouterr().out
    for part in ("50.0%", "conv1 4", "train 5.0 s", "140 kB", "0.180 ±0.005 ms"):
        assert part in text
    assert call("show", "digits", "--trial", 5, "--json", "--workspace", workspace) == 0
    trial = document(capsys.readouterr().out)["trial"]
    assert (trial["state"], trial["reason"], trial["measurement"]) == (TrialState.FAILED, "export failed: no", None)


def test_names_with_brackets_and_colons_are_printed_as_they_are(tmp_path, capsys):
    odd = replace(example_record().facts.groups[0], name="blocks[0]:x:", layers=("layer[bold]", ":smile:"))
    facts = replace(example_record().facts, groups=(odd,))
    write_example(tmp_path, example_record(facts=facts, message="[red]note"))
    assert call("show", "digits", "--workspace", tmp_path) == 0
    text = capsys.readouterr().out
    for name in ("blocks[0]:x:", "layer[bold], :smile:", "[red]note"):
        assert name in text


def test_list_shows_every_study(workspace, capsys):
    assert call("list", "--json", "--workspace", workspace) == 0
    (study,) = document(capsys.readouterr().out)["studies"]
    assert (study["study"], study["state"], study["trials"]["total"]) == ("digits", "finished", 6)
    assert call("list", "--workspace", workspace) == 0
    assert "118 s of 2.0 min" in capsys.readouterr().out


def test_cancel_reaches_a_running_study_and_leaves_a_finished_one(workspace, capsys):
    assert call("cancel", "digits", "--json", "--workspace", workspace) == 0
    assert document(capsys.readouterr().out) == {"study": "digits", "state": "finished", "cancel_requested": False}
    with StudyStore(workspace) as store:
        store.create(example_record("going", state=StudyState.RUNNING))
        store.claim("going")
        assert call("cancel", "going", "--workspace", workspace) == 0
        assert "asked going to end" in capsys.readouterr().out
        assert store.cancel_requested("going")
        assert not store.cancel_requested("digits")


@pytest.fixture
def bundles(monkeypatch):
    written = []

    def write_bundle(point, study, *, workspace, out):
        out.mkdir(parents=True)
        (out / "model.onnx").write_bytes((workspace / point.artifact).read_bytes())
        written.append((point.trial, study.name, out))
        return out

    module = types.ModuleType("autocompress.bundle")
    module.write_bundle, module.check_target = write_bundle, lambda out: out
    monkeypatch.setitem(sys.modules, "autocompress.bundle", module)
    return written


@pytest.mark.parametrize(
    ("arguments", "trial"),
    [
        (["--pick", "small"], 1),
        (["--pick", "fast"], 2),
        (["--pick", "accurate"], 0),
        (["--pick", "trial:2"], 2),
        (["--pick", "fast", "--max-size", "150kB"], 1),
        (["--pick", "small", "--max-drop", "0.001"], 0),
        (["--pick", "small", "--max-latency", "0.15"], 2),
    ],
)
def test_export_takes_the_point_that_the_rule_and_limits_name(workspace, bundles, capsys, tmp_path, arguments, trial):
    assert call("export", "digits", *arguments, "--out", tmp_path / "out", "--json", "--workspace", workspace) == 0
    printed = document(capsys.readouterr().out)
    assert printed == {"study": "digits", "trial": trial, "out": str(tmp_path / "out"), "files": ["model.onnx"]}
    assert bundles == [(trial, "digits", tmp_path / "out")]


def test_export_keeps_the_study_s_own_limits_unless_a_trial_is_named(tmp_path, bundles, capsys):
    write_example(tmp_path, example_record(search={"max_latency": 0.15}))
    assert call("export", "digits", "--pick", "small", "--out", tmp_path / "a", "--workspace", tmp_path) == 0
    assert call("export", "digits", "--pick", "trial:1", "--out", tmp_path / "b", "--workspace", tmp_path) == 0
    assert [trial for trial, _, _ in bundles] == [2, 1]


def test_report_writes_one_file(workspace, monkeypatch, capsys, tmp_path):
    module = types.ModuleType("autocompress.report")
    module.render_report = lambda study, trials: f"<html>{study.name} {len(trials)}</html>"
    monkeypatch.setitem(sys.modules, "autocompress.report", module)
    assert call("report", "digits", "--out", tmp_path / "r.html", "--json", "--workspace", workspace) == 0
    assert document(capsys.readouterr().out)["report"] == str(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "<html>digits 6</html>"
    assert call("report", "digits", "--out", tmp_path / "no" / "r.html", "--workspace", workspace) == 2
    assert "--out" in capsys.readouterr().err


# -- study files and the machine


def test_init_writes_a_file_that_loads_and_is_not_overwritten(workspace, capsys, tmp_path):
    path = tmp_path / "study.toml"
    assert call("init", path) == 0
    config = load_config(tomllib.loads(path.read_text()), name="x")
    expected = load_config(
        {"model": {"factory": "my_package.nets:make_model"}, "data": {"factory": "my_package.data:load"}}, name="x"
    )
    assert config == expected
    path.write_text("mine")
    assert call("init", path) == 2
    assert path.read_text() == "mine"
    assert "not overwritten" in capsys.readouterr().err


def test_schema_is_the_schema_of_a_study_file(capsys):
    assert call("schema", "--json") == 0
    assert document(capsys.readouterr().out) == StudyConfig.model_json_schema()
    assert call("schema") == 0
    assert json.loads(capsys.readouterr().out) == StudyConfig.model_json_schema()


def test_doctor_names_versions_and_leaves_nothing_behind(tmp_path, capsys):
    assert call("doctor", "--json", "--workspace", tmp_path / "runs") == 0
    printed = document(capsys.readouterr().out)
    assert printed["ok"] is True
    checks = {check["check"]: check for check in printed["checks"]}
    assert {"python", "torch", "onnxruntime", "processor", "timing noise", "workspace", "sqlite"} <= set(checks)
    assert list(tmp_path.iterdir()) == []


def test_doctor_fails_on_a_workspace_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert call("doctor", "--workspace", tmp_path / "file") == 2
    assert "FAIL  workspace" in capsys.readouterr().out


def test_devices_name_this_machine_and_its_runtime(capsys):
    assert call("devices", "--json") == 0
    device = document(capsys.readouterr().out)["devices"][0]
    assert (device["name"], device["runtime"]) == ("local", "onnxruntime")
    assert device["cores"] >= 1


# -- the live view


def test_the_live_view_shows_budget_trials_and_the_front_and_redraws_only_on_events():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110, no_color=True)
    view = LiveView(RunningFront(), metric="accuracy", title="digits", console=console)
    with view:
        view(Progress(stage="search", message="trial 4", spent_s=30.0, budget_s=120.0))
        for trial in example_trials():
            view(trial)
        assert not view._live.auto_refresh
    plain = Console(width=110, record=True, file=io.StringIO())
    plain.print(view.render())
    text = plain.export_text()
    assert "30 s of 2.0 min" in text
    assert "front: 3 points, 6 trials: 4 complete, 1 stopped, 1 failed" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line[:1].isdigit()}
    assert "on front" in rows["1"]
    assert "on front" not in rows["3"]
    assert "cannot reach the front" in rows["4"]
    assert "140 kB" in stream.getvalue()


def test_a_trial_that_was_on_the_front_is_no_longer_marked_when_beaten():
    front = RunningFront(trials=example_trials())
    better = replace(example_trials()[1], trial=9)
    assert front.add(replace(better, measurement=replace(better.measurement, val=0.99)))
    assert [t.trial for t in front.trials] == [9, 2]


def test_for_a_minimised_metric_the_running_front_prefers_less():
    front = RunningFront(minimize=True)
    assert front.add(example_trials()[3])
    assert not front.add(replace(example_trials()[1], measurement=replace(example_trials()[3].measurement, val=0.99)))


@pytest.mark.parametrize(
    ("ratio_half", "text"),
    [(0.03, "0.300 ±0.009 ms"), (0.004, "0.3000 ±0.0012 ms"), (0.0, "0.300 ms"), (3.0, "0.3 ±0.9 ms")],
)
def test_latency_has_no_more_digits_than_its_interval_supports(ratio_half, text):
    assert terminal._latency(0.3, 1.0, (1.0 - ratio_half, 1.0 + ratio_half)) == text
