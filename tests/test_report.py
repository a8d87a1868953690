"""The report is one file that requests nothing, says what happened, and survives hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from front_factories import BASELINE, make_facts, make_study, make_trial, make_trials

from autocompress.front.summary import front_points
from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, Skip, TrialState
from autocompress.report import render_report


class Page(HTMLParser):
    """Attributes of every element, text outside of scripts and styles, and the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append((self.elements[-1][1], data))
        elif not self._inside:
            self.text.append(data)

    @property
    def prose(self) -> str:
        return " ".join(" ".join(self.text).split())

    def data(self) -> dict[str, object]:
        return next(json.loads(text) for attrs, text in self.scripts if attrs.get("id") == "report-data")


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(make_study(), make_trials())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_in_the_page_points_outside(page: Page) -> None:
    linking = ("src", "href", "srcset", "action", "data", "poster", "formaction")
    targets = [(tag, attrs[name]) for tag, attrs in page.elements for name in linking if name in attrs]
    assert targets
    assert all(target.startswith(("#", "data:")) for _, target in targets)
    own = "".join(text for attrs, text in page.scripts if len(text) < 1_000_000) + page.prose
    assert "http://" not in own
    assert "https://" not in own


def test_the_style_asks_for_no_file(html: str) -> None:
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_plotly_is_inside_once(html: str) -> None:
    assert html.count("* plotly.js v") == 1


def test_the_policy_allows_exactly_the_scripts_of_the_page(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'none'" in policy
    assert "unsafe-eval" not in policy
    runnable = [text for attrs, text in page.scripts if attrs.get("type") in (None, "module")]
    assert len(runnable) == 2
    for text in runnable:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_there_is_no_share_button(page: Page) -> None:
    config = page.data()["config"]
    assert isinstance(config, dict)
    assert (config["showSendToCloud"], config["plotlyServerURL"], config["displaylogo"]) == (False, "", False)


def test_every_front_point_is_a_row_and_a_choice(page: Page) -> None:
    numbers = [str(p.trial) for p in front_points(make_study(), make_trials())]
    options = [a["value"] for tag, a in page.elements if tag == "option"]
    assert options == numbers
    assert [a["data-trial"] for tag, a in page.elements if "data-trial" in a] == numbers


def test_the_headline_is_what_the_knee_won(page: Page) -> None:
    assert "4.9x smaller and 2.3x faster for 0.37 points of accuracy." in page.prose
    selected = [a["value"] for tag, a in page.elements if tag == "option" and "selected" in a]
    assert selected == ["26"]


def test_the_page_tells_why_trials_ended_and_layers_were_skipped(page: Page) -> None:
    for text in (
        "even its optimistic accuracy cannot enter the front",
        "its 10 outputs are the classes",
        "validation data was carved from train",
        "0123456789abcdef",
        "onnxruntime 1.24.0",
        "4 cores, x86-64 with AVX2",
    ):
        assert text in page.prose


def test_every_figure_of_the_data_has_its_place(page: Page) -> None:
    drawn = page.data()["figures"]
    assert isinstance(drawn, dict)
    assert set(drawn) == {"budget", "size", "latency", "objectives", "hypervolume", "layers"}
    places = {a["id"] for _, a in page.elements if a.get("class") == "canvas"}
    assert places == {f"figure-{name}" for name in drawn}


def test_without_a_baseline_the_page_says_so() -> None:
    page = Page(render_report(make_study(baseline=None, facts=None, durations_s={}, versions={}, data_sizes={}), []))
    assert "No baseline yet" in page.prose
    assert "No trial was started" in page.prose
    assert page.data()["figures"] == {}


def test_without_a_front_the_page_says_so() -> None:
    stopped = make_trial(1, None, 1000, 0.5, state=TrialState.STOPPED, reason="cannot enter the front")
    page = Page(render_report(make_study(), [stopped]))
    assert "No front yet" in page.prose
    assert "cannot enter the front" in page.prose


def test_bounds_that_no_point_keeps_are_told_under_the_headline() -> None:
    config = make_study().config
    for size, told in ((10, True), (10**9, False)):
        bounded = make_study(config={**config, "search": {"max_size": size}})
        prose = " ".join(Page(render_report(bounded, make_trials())).prose.split())
        assert ("No artifact meets the constraints; the nearest is trial" in prose) is told
    assert "No artifact meets" not in Page(render_report(make_study(), make_trials())).prose


def test_a_baseline_that_nothing_beat_is_called_that() -> None:
    dense = make_trial(0, 0.981, 1_094_138, 1.0, test=0.978, origin="baseline")
    assert "Nothing was found that beats the dense model." in Page(render_report(make_study(), [dense])).prose


def test_a_metric_without_intervals_and_test_values_renders() -> None:
    base = replace(BASELINE, metric="mse", val=0.5, test=None)
    study = make_study(baseline=base, config={"task": {"metric": "mse"}}, facts=None)
    trial = make_trial(1, 0.51, 500_000, 0.5)
    assert trial.measurement is not None
    page = Page(render_report(study, [replace(trial, measurement=replace(trial.measurement, val_ci=None))]))
    assert "95 % intervals, of the latency alone: the mse has none" in " ".join(page.prose.split())
    assert "for 2.0 % more mse" in page.prose
    assert "test data was not looked at" in page.prose


def test_a_study_of_two_objectives_has_a_front_of_both() -> None:
    study, trials = make_study(objectives=("accuracy", "size")), [make_trial(1, 0.97, 500_000, 0.5)]
    assert "on the front of both objectives" in Page(render_report(study, trials)).prose
    assert "on the front of all three objectives" in Page(render_report(make_study(), trials)).prose


def test_what_was_believed_is_set_beside_what_came_out() -> None:
    drops = (0.002, 0.006, 0.015)
    believed = {"sd": 0.002, "size_ratio": 0.2, "latency_ratio": 0.5, "gain": 0.01, "source": "solver"}
    trials = [
        make_trial(n, 0.981 - drop, 220_000, 0.5, belief={"drop": drop / 2, **believed})
        for n, drop in enumerate(drops, 1)
    ]
    prose = " ".join(Page(render_report(make_study(), trials)).prose.split())
    assert "What the search believed, and what came out" in prose
    assert "believed and measured drops: rank correlation +1.00" in prose
    plain = [make_trial(1, 0.97, 500_000, 0.5)]
    assert "What the search believed" not in Page(render_report(make_study(), plain)).prose


def test_removed_blocks_are_told_and_their_layers_marked() -> None:
    block = BlockFacts(name="layer1.0", layers=("layer1.0.conv1", "layer1.0.conv2"), groups=("layer1.0.conv1",))
    plan = CompressionPlan(removed_blocks=("layer1.0",))
    trials = [make_trial(1, 0.97, 500_000, 0.5, plan=plan, widths={"layer1.0.conv1": 0}), make_trial(2, 0.98, 10**6, 1)]
    page = Page(render_report(make_study(facts=replace(make_facts(), blocks=(block,))), trials))
    assert "removed: 1 block (layer1.0)" in page.prose
    assert "Grey: removed with its block." in page.prose
    data = page.data()
    at = [layer["name"] for layer in data["layers"]].index("layer1.0.conv2")  # type: ignore[attr-defined]
    assert [(p["kept"][at], p["bits"][at], p["blocks"][at]) for p in data["points"]] == [  # type: ignore[attr-defined]
        (0, 0, "layer1.0"), (16, 32, "")
    ]  # fmt: skip
    assert "Grey" not in Page(render_report(make_study(), trials)).prose


def test_an_interval_is_in_the_unit_of_its_value() -> None:
    shares = Page(render_report(make_study(), [make_trial(1, 0.97, 500_000, 0.5)])).prose
    assert "95.0% to 98.0%" in shares
    base = replace(BASELINE, metric="mse", val=0.5, test=None)
    study = make_study(baseline=base, config={"task": {"metric": "mse"}})
    errors = Page(render_report(study, [make_trial(1, 0.51, 500_000, 0.5)])).prose
    assert "0.49 to 0.52" in errors


def test_names_and_reasons_cannot_become_markup() -> None:
    evil = '</script><img src=x onerror="alert(1)">'
    facts = replace(make_facts(), skips=(Skip(name="fc", what="prune", reason=evil),), notes=(evil,))
    trials = [*make_trials(12), make_trial(99, None, 1, 0.5, state=TrialState.FAILED, reason=evil)]
    page = Page(render_report(make_study(name=evil, facts=facts, message=evil), trials))
    assert not [tag for tag, attrs in page.elements if tag == "img" or "onerror" in attrs]
    assert evil in page.prose


def test_many_different_reasons_are_counted_and_cut() -> None:
    failed = [make_trial(n, None, 1, 0.5, state=TrialState.FAILED, reason=f"reason {n}") for n in range(20)]
    prose = Page(render_report(make_study(), failed)).prose
    assert "reason 11" in prose
    assert "reason 12" not in prose
    assert "and 8 rarer reasons" in prose
