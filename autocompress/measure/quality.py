"""How good an artifact is: the runtime's outputs on given inputs, and a metric over them.

Only numpy and ONNX Runtime, so that a device without torch computes the same number. Which data is
looked at, and when, is decided by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.config import BUILTIN_METRICS, top_k
from autocompress.errors import UsageError, first_line
from autocompress.front.hypervolume import Direction, metric_drop
from autocompress.measure.intervals import Interval, mean_interval, score_interval, wilson_interval
from autocompress.measure.runtime import open_artifact

Array = NDArray[Any]
_SCALES_BATCHES = b"DynamicQuantize"  # how the operators begin that do: of linear layers and of LSTMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A metric's value on some samples, and its 95 % interval over samples; None for a metric of one's own."""

    value: float
    ci: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number over (outputs, targets), and which way is better.

    Attributes:
        name: as in the study file.
        direction: "maximize" or "minimize".
        function: called with outputs [n, ...] and targets [n, ...] as arrays; returns a number.
        interval: the 95 % interval of that number, from the same arrays. Built-in metrics have one; a function of
            one's own may need any time for a call, and is called once.
    """

    name: str
    direction: Direction
    function: Callable[[Array, Array], Any]
    interval: Callable[[Array, Array], Interval] | None = None

    def judge(self, outputs: Array, targets: Array) -> Quality:
        """The metric and its interval; raises as calling it does."""
        value = self(outputs, targets)
        return Quality(value=value, ci=self.interval(outputs, targets) if self.interval else None)

    def __call__(self, outputs: Array, targets: Array) -> float:
        """The metric as a finite float.

        Raises:
            ValueError: outputs and targets have different lengths, or none.
            UsageError: the function returns something else than a finite number.
        """
        if len(outputs) != len(targets) or len(targets) == 0:
            raise ValueError(
                f"{self.name} needs as many outputs as targets and at least one, got {len(outputs)} and {len(targets)}"
            )
        try:
            value = float(self.function(outputs, targets))
        except (TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"the metric {self.name} raised {error}; it must return one number") from error
        if not math.isfinite(value):
            raise UsageError(f"the metric {self.name} gave {value}; it must return a finite number")
        return value


def metric_for(name_or_callable: str | Callable[[Array, Array], Any], direction: Direction | None = None) -> Metric:
    """The metric of a built-in name or of a function.

    Args:
        name_or_callable: one of `BUILTIN_METRICS` (K of topK_accuracy a number), or a function of (outputs, targets).
        direction: required for a function; built-in metrics know theirs.
    Raises:
        UsageError: an unknown name, a function without a direction, or a direction that contradicts a built-in.
    """
    if callable(name_or_callable):
        name = getattr(name_or_callable, "__name__", type(name_or_callable).__name__)
        if direction is None:
            raise UsageError(f'the metric {name} has no direction; set task.direction to "maximize" or "minimize"')
        return Metric(name=name, direction=direction, function=name_or_callable)
    if (k := top_k(name_or_callable)) is not None:
        metric = _top_k_accuracy(k)
    elif name_or_callable in _BUILTINS:
        metric = _BUILTINS[name_or_callable]
    else:
        known = ", ".join(BUILTIN_METRICS)
        raise UsageError(f"unknown metric {name_or_callable!r}; known are {known}, or load a module:function first")
    if direction not in (None, metric.direction):
        raise UsageError(
            f"{name_or_callable} is to {metric.direction}, got the direction {direction!r}; leave task.direction out"
        )
    return metric


def drop(metric: Metric, baseline: float, value: float) -> float:
    """Loss of quality against the baseline; negative where `value` is better.

    The difference for a maximised metric (0.01 is one point of accuracy), the relative increase for a minimised
    one (0.01 is one percent more error), because errors have no scale of their own.
    """
    return metric_drop(value, baseline, direction=metric.direction)


def accuracy(predictions: Array, targets: Array) -> float:
    """Share of samples whose predicted class is the target; of several labels, [n, labels], all must be right."""
    return float(np.mean(_right(predictions, targets)))


def balanced_accuracy(predictions: Array, targets: Array) -> float:
    """Recall averaged over the classes that occur in `targets`.

    Of several labels, each is a question of two classes, yes and no, and the mean is over the labels.
    """
    if targets.dtype == bool:
        return float(np.mean([balanced_accuracy(p, t) for p, t in zip(predictions.T * 1, targets.T * 1, strict=True)]))
    hits, actual, _ = _counts(predictions, targets)
    present = actual > 0
    return float(np.mean(hits[present] / actual[present]))


def recall(predictions: Array, targets: Array) -> float:
    """Recall averaged over the classes that occur in `targets` or were predicted (0 where only predicted).

    Source: the macro average of scikit-learn 1.9, `recall_score(average="macro", zero_division=0)`.
    """
    hits, actual, predicted = _counts(predictions, targets)
    seen = (actual + predicted) > 0
    return float(np.mean(hits[seen] / np.maximum(actual[seen], 1))) if seen.any() else 0.0


def f1(predictions: Array, targets: Array) -> float:
    """F1 = 2 hits / (actual + predicted), averaged over the classes that occur in `targets` or were predicted."""
    hits, actual, predicted = _counts(predictions, targets)
    seen = (actual + predicted) > 0
    return float(np.mean(2 * hits[seen] / (actual + predicted)[seen])) if seen.any() else 0.0


def squared_errors(outputs: Array, targets: Array) -> Array:
    """Squared error of every sample, the mean over its elements, [n]; [n, 1] against [n] counts as the same shape.

    Raises:
        UsageError: outputs and targets have different shapes.
    """
    errors: Array = np.square(_differences(outputs, targets, "mse")).mean(axis=1)
    return errors


def absolute_errors(outputs: Array, targets: Array) -> Array:
    """Absolute error of every sample, the mean over its elements, [n]; raises like `squared_errors`."""
    errors: Array = np.abs(_differences(outputs, targets, "mae")).mean(axis=1)
    return errors


def _differences(outputs: Array, targets: Array, name: str) -> Array:
    """Outputs less targets, [n, elements]."""
    if outputs.size != targets.size or len(outputs) != len(targets):
        raise UsageError(
            f"{name} needs outputs shaped like the targets, got {outputs.shape} and {targets.shape}; change one of them"
        )
    # reshape, since [n, 1] - [n] would broadcast to [n, n]
    difference: Array = (outputs.reshape(targets.shape).astype(np.float64) - targets).reshape(len(targets), -1)
    return difference


def _of_classes(score: Callable[[Array, Array], float]) -> Metric:
    """A metric of outputs [n, classes] from a score of predicted classes [n], or of several labels [n, labels]."""

    def interval(outputs: Array, targets: Array) -> Interval:
        predictions = _predictions(outputs, targets)
        if score is accuracy:
            return wilson_interval(accuracy(predictions, targets), len(targets))
        return score_interval(score, predictions, targets)

    return Metric(
        name=score.__name__,
        direction="maximize",
        function=lambda outputs, targets: score(_predictions(outputs, targets), targets),
        interval=interval,
    )


def _of_errors(name: str, errors: Callable[[Array, Array], Array]) -> Metric:
    """The mean of an error that every sample has."""
    return Metric(
        name=name,
        direction="minimize",
        function=lambda outputs, targets: errors(outputs, targets).mean(),
        interval=lambda outputs, targets: mean_interval(errors(outputs, targets)),
    )


def _top_k_accuracy(k: int) -> Metric:
    """Share of samples whose target is among the `k` largest outputs; a tie with the k-th does not count."""

    def share(outputs: Array, targets: Array) -> float:
        if targets.dtype == bool:
            raise UsageError(f"top{k}_accuracy needs one class label per sample; use f1 or accuracy for several")
        _predictions(outputs, targets)
        own = np.take_along_axis(outputs, targets[:, None], axis=1)
        return float(np.mean((outputs >= own).sum(axis=1) <= k))

    return Metric(
        name=f"top{k}_accuracy",
        direction="maximize",
        function=share,
        interval=lambda outputs, targets: wilson_interval(share(outputs, targets), len(targets)),
    )


_BUILTINS = {
    metric.name: metric
    for metric in (
        *map(_of_classes, (accuracy, balanced_accuracy, recall, f1)),
        _of_errors("mse", squared_errors),
        _of_errors("mae", absolute_errors),
    )
}


def _predictions(outputs: Array, targets: Array) -> Array:
    if targets.dtype == bool:  # several labels: each logit above 0 says yes
        if outputs.size != targets.size or len(outputs) != len(targets):
            raise UsageError(
                f"several labels per sample need one output for each, got {list(outputs.shape)} outputs and "
                f"{list(targets.shape)} targets"
            )
        chosen: Array = outputs.reshape(targets.shape) > 0
        return chosen
    if outputs.ndim != 2 or outputs.shape[1] < 2 or targets.ndim != 1:
        raise UsageError(
            "a classification metric needs outputs [n, classes] with at least 2 classes and targets [n], "
            f"got {list(outputs.shape)} and {list(targets.shape)}; use mse or a metric of your own"
        )
    if targets.max() >= outputs.shape[1]:
        raise UsageError(
            f"the model has {outputs.shape[1]} outputs but the targets go up to {int(targets.max())}; "
            "give it one output per class"
        )
    predictions: Array = outputs.argmax(axis=1)
    return predictions


def _right(predictions: Array, targets: Array) -> Array:
    """Whether a sample is right, [n]."""
    right: Array = (predictions == targets).reshape(len(targets), -1).all(axis=1)
    return right


def _counts(predictions: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Per class up to the largest that occurs: hits, samples with that target, samples with that prediction.

    Of several labels [n, labels] the same per label.
    """
    if targets.dtype == bool:
        return (predictions & targets).sum(0), targets.sum(0), predictions.sum(0)
    classes = int(max(predictions.max(), targets.max())) + 1
    hits = np.bincount(targets[predictions == targets], minlength=classes)
    return hits, np.bincount(targets, minlength=classes), np.bincount(predictions, minlength=classes)


def predict(
    artifact: Path,
    inputs: Sequence[Array],
    *,
    threads: int,
    batch: int = 64,
    device_batch: int = 1,
    runtime: str = "onnxruntime",
) -> Array:
    """Outputs of an ONNX file on all samples, computed by the runtime that will run it.

    Each thread runs a share of the samples by itself: kernels of small networks gain less from sharing an operation.
    A file with dynamic activations scales them over a whole run, so its answer to a sample depends on the samples it
    is batched with: such a file is run in batches of `device_batch`, as it was timed and will be used.

    Args:
        artifact: the .onnx file.
        inputs: one array [n, ...] per input of the graph, in its order.
        threads: at least 1.
        batch: samples per run of any other file; the last run of a share takes what is left.
    Returns:
        The first output, [n, ...].
    Raises:
        ValueError: the file does not load or run, the inputs do not match it, or an output is not finite.
    """
    batch = device_batch if _scales_batches(artifact) else batch
    if threads < 1 or batch < 1:
        raise ValueError(f"threads and batch must be at least 1, got {threads} and {batch}")
    lengths = {len(array) for array in inputs}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"every input needs the same number of samples and at least one, got {sorted(lengths)}")
    total = lengths.pop()
    share = math.ceil(total / threads)
    shares = [[array[start : start + share] for array in inputs] for start in range(0, total, share)]
    with ThreadPoolExecutor(threads) as pool:
        outputs: Array = np.concatenate(list(pool.map(lambda part: _predict(artifact, part, batch, runtime), shares)))
    finite = np.isfinite(outputs).reshape(total, -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"{artifact} gives NaN or infinite outputs on {total - int(finite.sum())} of {total} samples")
    return outputs


def _scales_batches(artifact: Path) -> bool:
    """Whether a file scales activations over all samples of a run; its operators' names are plain text in it."""
    return artifact.is_file() and _SCALES_BATCHES in artifact.read_bytes()


def _predict(artifact: Path, inputs: Sequence[Array], batch: int, runtime: str) -> Array:
    """Outputs on some samples, by a session of one thread."""
    run = open_artifact(artifact, runtime=runtime, threads=1)
    try:
        parts = [
            run([np.ascontiguousarray(array[start : start + batch]) for array in inputs])
            for start in range(0, len(inputs[0]), batch)
        ]
    except Exception as error:  # the runtime's own exceptions share no other base
        raise ValueError(f"{artifact} does not run: {first_line(error)}") from error
    return np.concatenate(parts)
