"""Two networks in one file: which answers what, for any batch, and what reaches the second one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.export.cascade import confidences, join

# The first network answers with its input as it is: sure of the rows 0 and 2 (0.982 and 0.953), not of the others.
ROWS = np.array([[4.0, 0.0], [0.1, 0.0], [0.0, 3.0], [0.0, 0.2]], np.float32)
SURE, UNSURE = [0, 2], [1, 3]


def network(nodes: Sequence[onnx.NodeProto], *weights: tuple[str, list[float]], classes: int = 2) -> bytes:
    """A file that maps `input` [batch, 2] to `output` [batch, classes]."""
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.array(values, np.float32), name) for name, values in weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def first() -> bytes:
    return network([helper.make_node("Mul", ["input", "a"], ["output"])], ("a", [1.0]))


def counting() -> bytes:
    """Answers [rows that it sees, minus the first input], with inner names that the first network has too."""
    nodes = [
        helper.make_node("Mul", ["input", "b"], ["a"]),  # [0, -x0]
        helper.make_node("Split", ["a"], ["c", "d"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["c", "zero"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["f"]),
        helper.make_node("ReduceSum", ["f"], ["h"], keepdims=1),
        helper.make_node("Add", ["e", "h"], ["i"]),
        helper.make_node("Sub", ["e", "c"], ["j"]),
        helper.make_node("Concat", ["i", "j"], ["output"], axis=1),
    ]
    return network(nodes, ("b", [1.0]), ("zero", [0.0]), ("one", [1.0]))


def run(file: bytes, rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(file)
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    answers: np.ndarray = session.run(None, {"input": rows})[0]
    return answers


def test_the_confidence_is_the_largest_probability():
    outputs = np.array([[0.0, np.log(3.0)], [5.0, 5.0], [1e4, 0.0]], np.float32)
    assert confidences(outputs) == pytest.approx([0.75, 0.5, 1.0])
    assert confidences(ROWS) == pytest.approx([0.98201, 0.52498, 0.95257, 0.54983], abs=1e-5)


def test_the_second_network_answers_what_the_first_is_unsure_of_and_sees_nothing_else():
    answers = run(join(first(), counting(), threshold=0.9), ROWS)
    assert np.array_equal(answers[SURE], ROWS[SURE])
    assert answers[UNSURE] == pytest.approx(np.array([[2.0, -0.1], [2.0, 0.0]])), "it saw two rows of four"


def test_one_sample_at_a_time_is_answered_by_one_of_them():
    file = join(first(), counting(), threshold=0.9)
    answers = np.concatenate([run(file, row[None]) for row in ROWS])
    assert np.array_equal(answers[SURE], ROWS[SURE])
    assert answers[UNSURE] == pytest.approx(np.array([[1.0, -0.1], [1.0, 0.0]]))


@pytest.mark.parametrize(("threshold", "passed_on"), [(0.5, []), (0.53, [1]), (0.96, [1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_the_threshold_says_who_is_asked(threshold, passed_on):
    answers = run(join(first(), counting(), threshold=threshold), ROWS)
    asked = [row for row in range(4) if not np.array_equal(answers[row], ROWS[row])]
    assert asked == passed_on
    assert all(answers[row, 0] == len(passed_on) for row in asked)


def test_the_bytes_are_those_of_both_and_a_few_hundred():
    weights = [float(v) for v in range(2000)]
    nodes = [
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Mul", ["input", "s"], ["output"]),
    ]
    large = network(nodes, ("w", weights))
    assert len(large) > 8000
    assert len(join(first(), large, threshold=0.9)) - len(first()) - len(large) < 600


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_a_threshold_that_decides_nothing_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be in"):
        join(first(), counting(), threshold=threshold)


def test_networks_with_other_outputs_are_refused():
    wider = network([helper.make_node("Concat", ["input", "input"], ["output"], axis=1)], classes=4)
    with pytest.raises(ValueError, match="their outputs are the same"):
        join(first(), wider, threshold=0.9)
