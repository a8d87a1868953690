"""Metrics against hand-computed values and scikit-learn; predictions of ONNX Runtime against numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import UsageError
from autocompress.front.hypervolume import metric_drop
from autocompress.measure.intervals import wilson_interval
from autocompress.measure.quality import Metric, drop, metric_for, predict

# Predicted classes 0 0 1 1 2 0 against the targets 0 0 0 1 1 2:
# hits 2 1 0, actual 3 2 1, predicted 3 2 1.
OUTPUTS = np.array([[5, 1, 0], [2, 1, 0], [0, 1, 0], [0, 9, 8], [0, 1, 3], [1, 0, 0]], dtype=np.float32)
TARGETS = np.array([0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 3 / 6),
        ("balanced_accuracy", (2 / 3 + 1 / 2 + 0) / 3),
        ("recall", (2 / 3 + 1 / 2 + 0) / 3),
        ("f1", (4 / 6 + 2 / 4 + 0) / 3),
    ],
)
def test_metrics_have_their_hand_computed_values(name: str, expected: float) -> None:
    metric = metric_for(name)
    assert metric.direction == "maximize"
    assert metric(OUTPUTS, TARGETS) == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_only_predicted_counts_for_recall_but_not_for_balanced_accuracy() -> None:
    targets = np.array([0, 0, 0, 1, 1, 0])  # class 2 is predicted once and never right
    assert metric_for("balanced_accuracy")(OUTPUTS, targets) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metric_for("recall")(OUTPUTS, targets) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("seed", range(20))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 7))
    count = int(rng.integers(3, 60))
    targets = rng.integers(0, rng.integers(1, classes) + 1, count)  # some classes are missing
    outputs = rng.integers(0, 3, (count, classes)).astype(np.float32)  # many ties
    predicted = outputs.argmax(1)
    # scikit-learn warns of a class that is only predicted and leaves it out, which is what the name promises
    classes_seen = np.unique(targets)
    oracle = {
        "accuracy": metrics.accuracy_score(targets, predicted),
        "balanced_accuracy": metrics.recall_score(
            targets, predicted, labels=classes_seen, average="macro", zero_division=0
        ),
        "recall": metrics.recall_score(targets, predicted, average="macro", zero_division=0),
        "f1": metrics.f1_score(targets, predicted, average="macro", zero_division=0),
    }
    for name, expected in oracle.items():
        assert metric_for(name)(outputs, targets) == pytest.approx(expected, abs=1e-12), name


def test_mse_does_not_broadcast_a_column_against_a_row() -> None:
    outputs, targets = np.array([[1.0], [2.0], [4.0]], np.float32), np.array([1.0, 1.0, 1.0], np.float32)
    assert metric_for("mse").direction == "minimize"
    assert metric_for("mse")(outputs, targets) == pytest.approx((0 + 1 + 9) / 3)
    assert metric_for("mse")(np.ones((2, 3)), np.zeros((2, 3))) == 1.0


def test_mae_is_the_mean_of_the_absolute_errors() -> None:
    outputs, targets = np.array([[1.0], [2.0], [4.0]], np.float32), np.array([1.0, 1.0, 1.0], np.float32)
    assert metric_for("mae").direction == "minimize"
    assert metric_for("mae")(outputs, targets) == pytest.approx((0 + 1 + 3) / 3)
    with pytest.raises(UsageError, match=r"mae needs outputs shaped like the targets, got \(2, 3\) and \(2,\)"):
        metric_for("mae")(OUTPUTS[:2], np.zeros(2))


def test_top_k_counts_targets_among_the_k_largest_and_no_ties() -> None:
    # ranks of the targets in OUTPUTS: 1, 1, tied 2 and 3, 1, 2, tied 2 and 3
    assert metric_for("top1_accuracy")(OUTPUTS, TARGETS) == metric_for("accuracy")(OUTPUTS, TARGETS) == 3 / 6
    assert metric_for("top2_accuracy")(OUTPUTS, TARGETS) == 4 / 6
    assert metric_for("top3_accuracy")(OUTPUTS, TARGETS) == 1.0
    assert metric_for("top2_accuracy").direction == "maximize"
    with pytest.raises(UsageError, match="unknown metric 'top0_accuracy'"):
        metric_for("top0_accuracy")
    with pytest.raises(UsageError, match="top2_accuracy needs one class label per sample"):
        metric_for("top2_accuracy")(np.zeros((2, 2)), np.zeros((2, 2), bool))


# Logits of two labels; yes is above 0. Predicted: 11 10 00 01 against 11 11 00 00.
LABEL_OUTPUTS = np.array([[2.0, 1.0], [1.0, -1.0], [-1.0, -3.0], [-1.0, 0.5]], np.float32)
LABELS = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 2 / 4),  # all labels of a sample right
        ("recall", (2 / 2 + 1 / 2) / 2),
        ("f1", (1.0 + 2 * 1 / (2 + 2)) / 2),
        ("balanced_accuracy", (1.0 + (1 / 2 + 1 / 2) / 2) / 2),
    ],
)
def test_metrics_of_several_labels_have_their_hand_computed_values(name: str, expected: float) -> None:
    quality = metric_for(name).judge(LABEL_OUTPUTS, LABELS)
    assert quality.value == pytest.approx(expected, abs=1e-12)
    assert quality.ci is not None
    assert quality.ci[0] <= quality.value <= quality.ci[1]


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_several_labels_agree_with_scikit_learn(seed: int) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    outputs, targets = rng.standard_normal((40, 3)).astype(np.float32), rng.random((40, 3)) < 0.4
    predicted = outputs > 0
    assert metric_for("accuracy")(outputs, targets) == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert metric_for("f1")(outputs, targets) == pytest.approx(metrics.f1_score(targets, predicted, average="macro"))
    recall = metrics.recall_score(targets, predicted, average="macro")
    assert metric_for("recall")(outputs, targets) == pytest.approx(recall)


def test_drop_is_a_difference_for_accuracy_and_a_ratio_for_errors() -> None:
    assert drop(metric_for("accuracy"), 0.9, 0.88) == pytest.approx(0.02)
    assert drop(metric_for("accuracy"), 0.9, 0.91) == pytest.approx(-0.01)
    assert drop(metric_for("mse"), 2.0, 2.5) == pytest.approx(0.25)
    assert drop(metric_for("mse"), 2.0, 1.0) == pytest.approx(-0.5)
    assert drop(metric_for("mse"), 0.0, 0.0) == 0.0
    assert np.isfinite(drop(metric_for("mse"), 0.0, 1e-3))
    assert drop(metric_for("mse"), 0.0, 1e-3) == metric_drop(1e-3, 0.0, direction="minimize"), "one definition"


def test_a_negative_minimised_metric_still_gets_worse_upwards() -> None:
    metric = metric_for(lambda outputs, targets: 0.0, "minimize")
    assert drop(metric, -2.0, -1.0) == pytest.approx(0.5)


def test_a_metric_of_ones_own_needs_a_direction() -> None:
    def margin(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        return float(outputs.max())

    metric = metric_for(margin, "minimize")
    assert (metric.name, metric.direction, metric(OUTPUTS, TARGETS)) == ("margin", "minimize", 9.0)
    with pytest.raises(UsageError, match=r"margin has no direction; set task\.direction"):
        metric_for(margin)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "recall", "f1", "top2_accuracy", "mse", "mae"])
def test_every_built_in_metric_is_judged_with_an_interval_that_holds_it(name: str) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=200)
    outputs = rng.random((200, 3)) + 0.5 * np.eye(3)[targets]
    if name in ("mse", "mae"):
        outputs, targets = outputs[:, :1], targets.astype(np.float64)
    metric = metric_for(name)
    quality = metric.judge(outputs, targets)
    assert quality.value == metric(outputs, targets)
    assert quality.ci is not None
    low, high = quality.ci
    assert low < quality.value < high
    assert quality == metric.judge(outputs, targets)
    if name in ("accuracy", "top2_accuracy"):
        assert quality.ci == wilson_interval(quality.value, 200)


def test_a_metric_of_ones_own_is_called_once_and_has_no_interval() -> None:
    calls = []

    def recall(outputs: NDArray[Any], targets: NDArray[Any]) -> float:  # the name of a built-in does not make it one
        calls.append(len(outputs))
        return 0.5

    quality = metric_for(recall, "maximize").judge(OUTPUTS, TARGETS)
    assert (quality.value, quality.ci, calls) == (0.5, None, [6])


def test_an_unknown_or_contradicted_metric_is_explained() -> None:
    with pytest.raises(
        UsageError,
        match="unknown metric 'auc'; known are accuracy, balanced_accuracy, recall, f1, topK_accuracy, mse, mae",
    ):
        metric_for("auc")
    with pytest.raises(UsageError, match="accuracy is to maximize, got the direction 'minimize'"):
        metric_for("accuracy", "minimize")
    assert metric_for("mse", "minimize").name == "mse"


def test_shapes_that_a_metric_cannot_use_are_explained() -> None:
    with pytest.raises(UsageError, match=r"at least 2 classes and targets \[n\], got \[3, 1\] and \[3\]"):
        metric_for("accuracy")(np.zeros((3, 1)), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="has 3 outputs but the targets go up to 3; give it one output per class"):
        metric_for("accuracy")(OUTPUTS[:2], np.array([0, 3]))
    with pytest.raises(UsageError, match=r"mse needs outputs shaped like the targets, got \(2, 3\) and \(2,\)"):
        metric_for("mse")(OUTPUTS[:2], np.zeros(2))
    with pytest.raises(ValueError, match="as many outputs as targets and at least one, got 6 and 5"):
        metric_for("accuracy")(OUTPUTS, TARGETS[:5])
    with pytest.raises(ValueError, match="got 0 and 0"):
        metric_for("accuracy")(OUTPUTS[:0], TARGETS[:0])


@pytest.mark.parametrize(
    ("result", "message"),
    [(float("nan"), "gave nan; it must return a finite number"), (None, "must return one number")],
)
def test_a_metric_that_gives_no_number_is_explained(result: Any, message: str) -> None:
    metric = Metric(name="own", direction="maximize", function=lambda outputs, targets: result)
    with pytest.raises(UsageError, match=message):
        metric(OUTPUTS, TARGETS)


def save_graph(
    path: Path, nodes: list[onnx.NodeProto], inputs: tuple[str, ...], weights: dict[str, NDArray[Any]] | None = None
) -> Path:
    """A graph of [batch, 3] inputs and one [batch, ...] output named `output`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in inputs],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


WEIGHT = np.array([[1, 0], [0, 2], [1, 1]], dtype=np.float32)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    node = helper.make_node("MatMul", ["input", "w"], ["output"])
    return save_graph(tmp_path / "linear.onnx", [node], ("input",), {"w": WEIGHT})


@pytest.mark.parametrize(("count", "batch"), [(1, 250), (7, 3), (6, 3), (250, 250), (5, 1)])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_predictions_equal_numpy_for_every_rest_of_a_batch(linear: Path, count: int, batch: int, threads: int) -> None:
    inputs = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    outputs = predict(linear, (inputs,), threads=threads, batch=batch)
    assert outputs.shape == (count, 2)
    assert outputs == pytest.approx(inputs @ WEIGHT, abs=1e-6)


def test_several_inputs_are_given_in_the_order_of_the_graph(tmp_path: Path) -> None:
    node = helper.make_node("Sub", ["input_0", "input_1"], ["output"])
    path = save_graph(tmp_path / "sub.onnx", [node], ("input_0", "input_1"))
    a, b = np.full((4, 3), 5, np.float32), np.full((4, 3), 2, np.float32)
    assert (predict(path, (a, b), threads=1) == 3).all()
    with pytest.raises(ValueError, match="has the inputs input_0, input_1, got 1 arrays"):
        predict(path, (a,), threads=1)
    with pytest.raises(ValueError, match=r"same number of samples and at least one, got \[3, 4\]"):
        predict(path, (a, b[:3]), threads=1)


def test_a_file_that_scales_over_its_batch_is_run_in_batches_of_the_device(tmp_path: Path) -> None:
    """Beside a large sample a small one is rounded to zero; by itself it keeps its value."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["input"], ["whole", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["output"]),
    ]
    path = save_graph(tmp_path / "dynamic.onnx", nodes, ("input",))
    inputs = np.array([[0.1, 0.1, 0.1], [100, 100, 100]], np.float32)
    assert predict(path, (inputs,), threads=1) == pytest.approx(inputs, rel=1e-3)
    together = predict(path, (inputs,), threads=1, batch=1, device_batch=2)
    assert together == pytest.approx(np.array([[0, 0, 0], [100, 100, 100]]), rel=1e-3)


def test_outputs_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    path = save_graph(tmp_path / "log.onnx", [helper.make_node("Log", ["input"], ["output"])], ("input",))
    inputs = np.array([[1, 1, 1], [1, 0, 1], [-1, 1, 1]], np.float32)
    for threads in (1, 2):
        with pytest.raises(ValueError, match="NaN or infinite outputs on 2 of 3 samples"):
            predict(path, (inputs,), threads=threads)


def test_a_file_that_does_not_load_or_run_is_named(linear: Path, tmp_path: Path) -> None:
    inputs = np.zeros((2, 3), np.float32)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*broken\.onnx"):
        predict(tmp_path / "broken.onnx", (inputs,), threads=1)
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*none\.onnx"):
        predict(tmp_path / "none.onnx", (inputs,), threads=1)
    with pytest.raises(ValueError, match=r"linear\.onnx does not run: .*float"):
        predict(linear, (inputs.astype(np.float64),), threads=1)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 64"):
        predict(linear, (inputs,), threads=0)


def test_measuring_quality_needs_neither_torch_nor_scikit_learn(linear: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from autocompress.measure.quality import metric_for, predict\n"
        f"out = predict(Path({str(linear)!r}), (np.ones((4, 3), np.float32),), threads=1)\n"
        "print(metric_for('accuracy')(out, np.ones(4, np.int64)), 'torch' in sys.modules, 'sklearn' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "False", "False"]
