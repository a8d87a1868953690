"""The figures draw the facts they were given: values, intervals and roles."""

from __future__ import annotations

from dataclasses import replace

import pytest
from front_factories import BASELINE, make_facts, make_study, make_trial, make_trials

from autocompress import figures
from autocompress.errors import NotFoundError, UsageError
from autocompress.front.compare import compare_document
from autocompress.front.point import point_document
from autocompress.front.summary import front_facts, layer_rows
from autocompress.plan import CompressionPlan
from autocompress.records import BlockFacts, TrialState

FACTS = front_facts(make_study(), make_trials())


def traces(figure: object) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data}  # type: ignore[attr-defined]


def test_no_figure_offers_to_send_itself_anywhere() -> None:
    assert figures.FIGURE_CONFIG["showSendToCloud"] is False
    assert figures.FIGURE_CONFIG["plotlyServerURL"] == ""
    assert figures.FIGURE_CONFIG["displaylogo"] is False


def test_every_measured_trial_is_drawn_once_and_the_baseline_by_its_own_mark() -> None:
    drawn = traces(figures.plot_trade_off(FACTS, "size"))
    names = ("dominated", "anchor, dominated", "front, validation", "front, anchor")
    numbers = sorted(n for name in names for n in drawn[name].customdata)  # type: ignore[attr-defined]
    assert numbers == [p.point.trial for p in FACTS.points if p.point.origin != "baseline"]
    baseline = drawn["baseline"]
    assert (baseline.x[0], baseline.y[0]) == (BASELINE.size_bytes / 1000, 0.0)  # type: ignore[attr-defined]


def test_anchors_keep_their_symbol_on_the_front() -> None:
    trials = [make_trial(1, 0.97, 200_000, 0.5, origin="anchor"), make_trial(2, 0.96, 100_000, 0.5)]
    drawn = traces(figures.plot_trade_off(front_facts(make_study(), trials), "size"))
    assert list(drawn["front, anchor"].customdata) == [1]  # type: ignore[attr-defined]
    assert list(drawn["front, validation"].customdata) == [2]  # type: ignore[attr-defined]
    assert drawn["front, anchor"].marker.symbol == "square"  # type: ignore[attr-defined]


def test_the_line_falls_as_the_file_grows() -> None:
    line = traces(figures.plot_trade_off(FACTS, "size"))["front of these two"]
    assert list(line.x) == sorted(line.x)  # type: ignore[attr-defined]
    assert list(line.y) == sorted(line.y, reverse=True)  # type: ignore[attr-defined]


def test_whiskers_are_the_measured_latency_interval_and_the_binomial_one() -> None:
    study = make_study(data_sizes={"val": 180})
    facts = front_facts(study, [make_trial(1, 0.931, 200_000, 0.5)])
    front = traces(figures.plot_trade_off(facts, "latency"))["front, validation"]
    assert front.error_x.array[0] == pytest.approx(0.309 * 0.5 * 0.02)  # type: ignore[attr-defined]
    assert front.error_x.arrayminus[0] == pytest.approx(0.309 * 0.5 * 0.02)  # type: ignore[attr-defined]
    up, down = front.error_y.array[0], front.error_y.arrayminus[0]  # type: ignore[attr-defined]
    assert up > down > 0  # a loss can be larger than it looks, more than it can be smaller
    assert front.y[0] == pytest.approx(5.0)  # type: ignore[attr-defined]


def test_test_values_are_apart_from_validation_values() -> None:
    facts = front_facts(make_study(), [make_trial(1, 0.971, 200_000, 0.5, test=0.958)])
    drawn = traces(figures.plot_trade_off(facts, "size"))
    assert drawn["front, validation"].y[0] == pytest.approx(1.0)  # type: ignore[attr-defined]
    assert drawn["front, test"].y[0] == pytest.approx(2.0)  # type: ignore[attr-defined]
    assert drawn["front, test"].marker.symbol == "diamond-open"  # type: ignore[attr-defined]


def test_whiskers_are_the_interval_of_the_loss_also_where_less_is_better() -> None:
    trial = make_trial(1, 0.971, 200_000, 0.5)  # interval 0.951 to 0.981 against a baseline of 0.981
    whisker = traces(figures.plot_trade_off(front_facts(make_study(), [trial]), "size"))["front, validation"].error_y
    assert (whisker.array[0], whisker.arrayminus[0]) == pytest.approx((2.0, 1.0))
    base = replace(BASELINE, metric="mse", val=0.5, test=None)
    trial = make_trial(1, 0.55, 200_000, 0.5)  # 10 % more error, interval 0.53 to 0.56: 6 % to 12 %
    facts = front_facts(make_study(baseline=base, config={"task": {"metric": "mse"}}), [trial])
    whisker = traces(figures.plot_trade_off(facts, "size"))["front, validation"].error_y
    assert (whisker.array[0], whisker.arrayminus[0]) == pytest.approx((2.0, 4.0))


def test_a_metric_without_intervals_has_no_whiskers() -> None:
    trial = make_trial(1, 0.971, 200_000, 0.5)
    assert trial.measurement is not None
    bare = replace(trial, measurement=replace(trial.measurement, val_ci=None))
    drawn = traces(figures.plot_trade_off(front_facts(make_study(), [bare]), "size"))["front, validation"]
    assert drawn.error_y.array is None


def test_stopped_trials_are_not_drawn() -> None:
    trials = [make_trial(1, 0.97, 200_000, 0.5), make_trial(2, None, 1000, 0.1, state=TrialState.STOPPED)]
    figure = figures.plot_objectives(front_facts(make_study(), trials))
    assert sum(len(trace.x) for trace in figure.data) == 2  # the trial and the baseline


def test_hover_text_names_trial_plan_and_interval_and_escapes_what_a_user_named() -> None:
    plan = CompressionPlan(prune_ratio={"<b>": 0.5}, weight_bits={"a": 4})
    facts = front_facts(make_study(), [make_trial(7, 0.971, 61_044, 0.5, plan=plan)])
    text = figures.hover_text(facts.points[0], facts)
    for part in (
        "trial 7",
        "1.0 points",
        "61.0 kB",
        "0.49 to 0.51 of the baseline",
        "4 bits in 1 layer",
        "pruned: 50%",
    ):
        assert part in text


def test_the_layer_bars_hold_ratio_and_bits_in_the_order_of_the_model() -> None:
    plan = CompressionPlan(prune_ratio={"conv1": 0.5}, weight_bits={"conv1": 8, "fc": 4})
    rows = layer_rows(make_facts(), make_trial(1, 0.9, 1000, 0.5, plan=plan, widths={"conv1": 8}))
    share, bits = figures.plot_layers(rows).data
    assert share.y[0] == "conv1"
    assert share.x[0] == 50.0
    assert (bits.x[0], bits.x[-1]) == (8, 4)


def test_every_width_of_weights_has_a_colour_of_its_own() -> None:
    assert set(figures.BITS_COLOR) == {1, 2, 3, 4, 5, 6, 8, 16, 32}
    assert len(set(figures.BITS_COLOR.values())) == 9


def test_an_error_that_grows_is_told_in_percent() -> None:
    base = replace(BASELINE, metric="mse", val=0.5, test=None)
    study = make_study(baseline=base, config={"task": {"metric": "mse"}})
    trials = [make_trial(1, 0.515, 200_000, 0.5), make_trial(2, 0.5075, 300_000, 0.5)]
    names = {trace.name for trace in figures.study_figure("parallel", study, trials).data}
    assert names == {"1 to 2 % more", "2 to 5 % more"}
    document = compare_document([("a", study, trials), ("b", replace(study, name="b"), trials)])
    texts = traces(figures.compare_figure("accuracy_size", document))["b"].hovertext  # type: ignore[attr-defined]
    assert any("3.0 % lost on validation data" in text for text in texts)


def test_the_bars_of_a_layer_that_went_with_its_block_say_so() -> None:
    block = BlockFacts(name="layer1.0", layers=("layer1.0.conv1", "layer1.0.conv2"))
    facts = replace(make_facts(), blocks=(block,))
    trial = make_trial(1, 0.9, 1000, 0.5, plan=CompressionPlan(removed_blocks=("layer1.0",)))
    share, bits = figures.plot_layers(layer_rows(facts, trial)).data
    at = list(share.y).index("layer1.0.conv2")
    assert (share.x[at], share.marker.color[at], share.marker.color[0]) == (100.0, figures.GREY, figures.GREEN)
    assert (bits.x[at], bits.text[at], bits.text[0]) == (0, "", "32")
    assert share.hovertext[at] == "layer1.0.conv2: removed with its block layer1.0"


def test_the_budget_is_stacked_stage_by_stage() -> None:
    figure = figures.plot_budget(FACTS)
    study = {trace.name: trace.x[0] for trace in figure.data if trace.y[0] == "study"}
    assert study == {"setup": 1.2, "teacher": 14.0, "baseline": 3.1, "search": 78.0, "final": 21.0}


def test_the_hypervolume_starts_at_zero_and_has_the_budget_as_a_line() -> None:
    figure = figures.plot_hypervolume(FACTS)
    assert (figure.data[0].x[0], figure.data[0].y[0]) == (0.0, 0.0)
    assert figure.layout.shapes[0].x0 == 120.0


def test_nothing_measured_still_draws() -> None:
    facts = front_facts(make_study(baseline=None, durations_s={}), [])
    for figure in (
        figures.plot_trade_off(facts, "size"),
        figures.plot_trade_off(facts, "latency"),
        figures.plot_objectives(facts),
        figures.plot_hypervolume(facts),
        figures.plot_budget(facts),
        figures.plot_layers([]),
    ):
        assert figure.layout.height > 0


def test_a_file_that_lost_everything_does_not_flatten_the_rest() -> None:
    trials = [make_trial(1, 0.975, 90_000, 0.5), make_trial(2, 0.60, 9_000, 0.4), make_trial(3, 0.95, 50_000, 0.6)]
    facts = front_facts(make_study(), trials)
    low, high = figures.plot_trade_off(facts, "size").layout.yaxis.range
    shown = [p.drop * 100 for p in facts.points if p.point.trial != 2]
    assert all(low < drop < high for drop in shown)
    assert high < 8
    assert figures.beyond_view(facts) == 1


def test_a_front_on_which_everything_is_bad_is_still_drawn() -> None:
    facts = front_facts(make_study(), [make_trial(1, 0.60, 9_000, 0.4)])
    assert figures.plot_trade_off(facts, "size").layout.yaxis.range[1] > facts.points[0].drop * 100
    assert figures.beyond_view(facts) == 0


def test_trials_that_ended_early_are_faint_and_the_untrained_have_a_strip_of_their_own() -> None:
    trials = [
        make_trial(1, 0.97, 200_000, 0.5),
        make_trial(2, None, 50_000, 0.2, state=TrialState.STOPPED),
        make_trial(3, None, 70_000, 0.3, state=TrialState.STOPPED, rung_drop=0.04),
    ]
    drawn = traces(figures.plot_trade_off(front_facts(make_study(), trials), "size"))
    before, while_training = drawn["stopped before training"], drawn["stopped while training"]
    assert (before.x, before.customdata, before.yaxis) == ((50.0,), (2,), "y2")  # type: ignore[attr-defined]
    assert (while_training.x, while_training.y, while_training.yaxis) == ((70.0,), (4.0,), "y")  # type: ignore[attr-defined]
    assert before.marker.opacity < 0.5  # type: ignore[attr-defined]


def test_thousands_of_points_are_of_the_kind_that_the_pages_draw_on_a_canvas_and_stay_small() -> None:
    facts = front_facts(make_study(), make_trials(2500))
    figure = figures.plot_trade_off(facts, "size")
    kinds = {trace.name: trace.type for trace in figure.data}
    assert (kinds["dominated"], kinds["front, validation"]) == ("scattergl", "scatter")
    assert len(figure.to_json()) < 2500 * 60


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_of_a_study_is_there_by_name_and_keeps_the_readers_zoom(name: str) -> None:
    figure = figures.study_figure(name, make_study(), make_trials())
    assert len(figure.data) >= 1
    assert figure.layout.uirevision == "keep"


def test_an_unknown_figure_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no figure 'pie' of a study; there are accuracy_size, "):
        figures.study_figure("pie", make_study(), [])
    with pytest.raises(NotFoundError, match="there are layers, curve"):
        figures.point_figure("pie", {})
    with pytest.raises(UsageError, match="one of loss, size, latency, got 'luck'"):
        figures.study_figure("importance", make_study(), make_trials(), target="luck")


def test_parallel_coordinates_leave_out_what_never_varied_and_end_in_the_objectives() -> None:
    figure = figures.study_figure("parallel", make_study(), make_trials())
    labels = list(figure.layout.xaxis.ticktext)
    assert labels == ["channels removed, %", "bits per weight", "activations", *labels[-3:]]
    assert labels[-3:] == ["file, kB", "latency, ms", "accuracy lost, points"]
    texts = [note.text for note in figure.layout.annotations if note.x == 2]
    assert texts == ["float", "uint8"]


def test_every_line_of_parallel_coordinates_is_a_trial_between_the_ends_of_its_axes() -> None:
    trials = make_trials()
    figure = figures.study_figure("parallel", make_study(), trials)
    width = len(figure.layout.xaxis.ticktext) + 1  # a gap after every line
    drawn = {}
    for trace in figure.data:
        assert len(trace.x) == len(trace.y) == width * len(trace.customdata)
        for row, trial in enumerate(trace.customdata):
            drawn[trial] = trace.y[row * width : (row + 1) * width - 1]
    assert sorted(drawn) == [p.point.trial for p in FACTS.points if p.point.origin != "baseline"]
    assert min(map(min, drawn.values())) == 0
    assert max(map(max, drawn.values())) == 1
    sizes = {t.trial: t.measurement.size_bytes for t in trials if t.measurement}
    assert max(drawn, key=lambda trial: drawn[trial][-3]) == max(drawn, key=lambda trial: sizes[trial])


def test_parallel_coordinates_of_very_many_trials_keep_the_front() -> None:
    trials = make_trials(4000)
    figure = figures.study_figure("parallel", make_study(), trials)
    drawn = {trial for trace in figure.data for trial in trace.customdata}
    front = {p.point.trial for p in front_facts(make_study(), trials).points if p.on_front} - {0}
    assert len(drawn) <= 1600
    assert front <= drawn


def test_what_explains_the_size_most_is_bits_and_channels() -> None:
    (bars,) = figures.study_figure("importance", make_study(), make_trials(300), target="size").data
    assert set(bars.y[:2]) == {"channels removed", "bits per weight"}
    assert list(bars.x) == sorted(bars.x, reverse=True)


def test_the_bars_of_a_point_stand_before_the_dense_layer() -> None:
    document = point_document(make_study(), make_trials(), 5)
    figure = figures.point_figure("layers", document)
    by_axis = {trace.xaxis: [t for t in figure.data if t.xaxis == trace.xaxis] for trace in figure.data}
    assert list(by_axis) == ["x", "x2", "x3", "x4"]
    dense, now = by_axis["x3"]
    assert list(now.x) == [row["size_bytes"] / 1000 for row in document["layers"]]
    assert list(dense.x) == [row["size_bytes_dense"] / 1000 for row in document["layers"]]
    assert figure.layout.xaxis4.title.text == "ms, inferred"


def test_without_enough_timed_files_the_bars_are_multiply_accumulates() -> None:
    document = point_document(make_study(), make_trials()[:3], 1)
    assert figures.point_figure("layers", document).layout.xaxis4.title.text == "million MACs"


def test_the_learning_curve_is_seconds_against_loss() -> None:
    trial = make_trial(1, 0.97, 1000, 0.5, learning_curve=((0.5, 2.0), (1.0, 0.5)))
    (line,) = figures.point_figure("curve", point_document(make_study(), [trial], 1)).data
    assert (line.x, line.y) == ((0.5, 1.0), (2.0, 0.5))


def test_studies_over_one_another_have_a_colour_and_a_symbol_each() -> None:
    document = compare_document([("a", make_study(), make_trials()), ("b", make_study(name="b"), make_trials(40, 1))])
    for name in ("accuracy_size", "accuracy_latency"):
        drawn = traces(figures.compare_figure(name, document))
        looks = {(drawn[s].marker.color, drawn[s].marker.symbol) for s in ("digits", "b")}  # type: ignore[attr-defined]
        assert len({c for c, _ in looks}) == len({s for _, s in looks}) == 2
    assert [t.name for t in figures.compare_figure("hypervolume", document).data] == ["digits", "b"]
