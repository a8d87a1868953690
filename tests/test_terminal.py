"""Tables that fit the terminal they are printed on, and say what a point costs."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from front_factories import make_facts, make_point, make_study, make_trial

from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, Cascade, Progress, TrialState
from autocompress.terminal import LiveView, RunningFront, print_front, print_study, print_trial, trial_line


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


POINTS = [
    make_point(3, val=0.70, test=0.69, size_bytes=9_000, latency_ms=0.301, latency_ratio=0.97),
    make_point(17),
]


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_front_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    stream = FakeTerminal()
    print_front(make_study(), POINTS, stream=stream)
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert any(line.split() == ["trial", "val", "test", "size", "latency", "what", "was", "won"] for line in lines)
    assert "files: artifacts/digits/trial-N/model.onnx in the workspace" in " ".join(stream.getvalue().split())


def test_a_pipe_gets_every_point_in_one_line_with_its_file() -> None:
    stream = io.StringIO()
    print_front(make_study(), POINTS, stream=stream)
    rows = [line for line in stream.getvalue().splitlines() if line.startswith(("3 ", "17 "))]
    assert [row.split()[-1] for row in rows] == [f"artifacts/digits/trial-{n}/model.onnx" for n in (3, 17)]
    assert "accuracy val" in stream.getvalue()


def test_a_study_of_a_server_is_not_followed_by_a_command_that_needs_the_workspace() -> None:
    stream = io.StringIO()
    print_front(make_study(), POINTS, flags=" --server http://x", local=False, stream=stream)
    following = [line for line in stream.getvalue().splitlines() if line.startswith("next: ")]
    assert following == ["next: autocompress export digits --pick knee --out digits-bundle --server http://x"]


def test_a_point_that_loses_more_than_five_points_is_called_so() -> None:
    stream = io.StringIO()
    print_front(make_study(), POINTS, stream=stream)
    lossy, fine = (line for line in stream.getvalue().splitlines() if line.startswith(("3 ", "17 ")))
    assert "large loss: 122x smaller" in lossy
    assert "large loss" not in fine


def test_a_noisy_timing_is_marked() -> None:
    trial = make_trial(1, 0.97, 200_000, 0.5)
    noisy = trial.from_dict(
        trial.to_dict()
        | {"measurement": trial.to_dict()["measurement"] | {"latency": {**_latency(trial), "contended": True}}}
    )
    assert trial_line(noisy, on_front=True, metric="accuracy").endswith("ms noisy  on front")
    assert "noisy" not in trial_line(trial, on_front=True, metric="accuracy")


def test_the_latency_of_a_cascade_is_called_a_mean() -> None:
    trial = make_trial(7, 0.971, 547_069, 0.5)
    cascade = Cascade(first=1, second=2, threshold=0.5, passed_on=0.1, second_plan=CompressionPlan())
    assert "  p50 " in trial_line(trial, on_front=True, metric="accuracy")
    line = trial_line(replace(trial, cascade=cascade), on_front=True, metric="accuracy")
    assert "  mean " in line
    assert "p50" not in line


def test_a_study_names_its_blocks_and_a_trial_those_it_removed() -> None:
    block = BlockFacts(name="layer1.0", layers=("layer1.0.conv1", "layer1.0.conv2"), groups=("layer1.0.conv1",))
    study = make_study(facts=replace(make_facts(), blocks=(block, replace(block, name="layer1.1"))))
    stream = io.StringIO()
    print_study(study, [], stream=stream)
    assert "blocks that may be removed: layer1.0, layer1.1" in stream.getvalue()
    plan = CompressionPlan(prune_ratio={"conv1": 0.5}, removed_blocks=("layer1.0",))
    trial = make_trial(1, 0.97, 200_000, 0.5, plan=plan, widths={"conv1": 8, "layer1.0.conv1": 0})
    stream = io.StringIO()
    print_trial(study, trial, stream=stream)
    assert "removed: 1 block (layer1.0)" in stream.getvalue()
    rows = [line.split() for line in stream.getvalue().splitlines()]
    assert ["conv1", "50.0%", "8"] in rows
    assert ["layer1.0.conv1", "removed", "0"] in rows


BELIEF = {"drop": 0.004, "sd": 0.002, "size_ratio": 0.2, "latency_ratio": 0.5, "gain": 0.0123, "source": "solver"}


def test_a_study_says_how_good_its_beliefs_were_and_where_the_time_went() -> None:
    drops = (0.002, 0.006, 0.015)
    trials = [
        make_trial(n, 0.981 - drop, 220_000, 0.5, belief=BELIEF | {"drop": drop / 2}) for n, drop in enumerate(drops, 1)
    ]
    stream = io.StringIO()
    print_study(make_study(), trials, stream=stream)
    lines = stream.getvalue().splitlines()
    assert "believed and measured drops: rank correlation +1.00" in lines
    assert any(line.startswith("budget: setup 1.2 s, teacher 14 s") for line in lines)


def test_a_trial_says_why_it_was_tried_and_what_its_rung_saw() -> None:
    trial = make_trial(5, 0.97, 200_000, 0.5, belief=BELIEF, rung_drop=0.021, rung_s=1.5)
    stream = io.StringIO()
    print_trial(make_study(), trial, stream=stream)
    text = " ".join(stream.getvalue().split())
    assert "believed to lose 0.40 points (give or take 0.20 points) at 5.0x smaller and 2.0x faster" in text
    assert "worth 0.0123 of hypervolume" in text
    assert "rung: 2.1 points lost after 1.5 s, on a part of the validation data" in text


def _latency(trial: object) -> dict[str, object]:
    return dict(trial.to_dict()["measurement"]["latency"])  # type: ignore[attr-defined]


def test_the_live_view_fits_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    view = LiveView(RunningFront(), metric="accuracy", title="digits", console=console)
    with view:
        view(Progress(stage="search", message="a long message " * 20, spent_s=30.0, budget_s=120.0))
        view(make_trial(1, 0.97, 200_000, 0.5))
        view(make_trial(2, None, 90_000, 0.5, state=TrialState.STOPPED, reason="a reason of many words " * 9))
    with console.capture() as capture:
        console.print(view.render())
    lines = capture.get().splitlines()
    assert max(len(line) for line in lines) <= 100
    assert "30 s of 2.0 min" in lines[0]
    assert any(line.startswith("front: 1 point, 2 trials: 1 complete, 1 stopped") for line in lines)
    assert sum("many words" in line for line in lines) == 1
