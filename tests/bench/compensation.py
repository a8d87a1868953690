"""What folding removed channels into the kept ones is worth, before any training and after trainings of some seconds.

    python tests/bench/compensation.py --study fashion_mnist_resnet20 --weights teacher.safetensors --repeats 3

Every group loses the same share of its channels, weights have 8 bits, and every value is of the file that comes of it,
on the validation data. A trial does not say how long the folding took; it is part of `prune`, which is shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.export.artifact import emit
from autocompress.plan import CompressionPlan
from autocompress.records import Latency, TrialState
from autocompress.recover.damage import reestimate_
from autocompress.space.search_space import SearchSpace
from autocompress.study.evaluate import evaluate
from autocompress.study.prepare import prepare
from autocompress.study.requests import Request, Source
from autocompress.study.task import Task
from autocompress.study_file import find_study

_LONG_S = 3600.0
_NOT_TIMED = Latency(latency_ms=1.0, ratio=1.0, ratio_ci=(1.0, 1.0), blocks=1)  # this is about accuracy alone
_OTHER_SAMPLES = 5000  # further along in the order of the samples, each repeat begins


def main() -> None:
    """Cut and train the network of a study in both ways, and print what comes of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="digits", help="a built-in study or a study file")
    parser.add_argument("--weights", type=Path, help="of the dense network; without, it is trained first")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7], help="of every group's channels removed")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="of training")
    parser.add_argument("--repeats", type=int, default=1, help="trainings of each kind; the table has their means")
    arguments = parser.parse_args()
    overrides = ['search.sampler="random"']  # it has no profile to measure
    if arguments.weights:
        overrides.append(f"model.weights={arguments.weights.absolute()}")
    with tempfile.TemporaryDirectory(prefix="autocompress-bench-") as folder:
        config, base = find_study(arguments.study, overrides=overrides, workspace=Path(folder))
        source = Source(config=config, workspace=Path(folder), budget_s=_LONG_S, base=base)
        task, prepared = prepare(source, None, lambda _: None)
        metric, dense = prepared.baseline.metric, prepared.baseline.val
        print(f"{arguments.study}: {metric} {dense:.4f} of the dense file, {prepared.data_sizes['val']} samples")
        print(f"{'removed':>8}{'training':>10}{'dropped':>9}{'folded':>8}{'prune s':>9}{'folded':>8}")
        for share in arguments.shares:
            plan = uniform(task, share)
            untrained = [before_training(each, plan) for each in (replace(task, grams=None), task)]
            print(f"{share:>8.0%}{'none':>10}{untrained[0]:>9.4f}{untrained[1]:>8.4f}")
            for seconds in arguments.seconds:
                compare(task, plan, share, seconds, arguments.repeats)


def uniform(task: Task, share: float) -> CompressionPlan:
    """Every group without a share of its channels; weights of 8 bits, activations in float."""
    space = SearchSpace(config=task.source.config.space, facts=task.facts)
    plan = space.decode({f"prune_ratio/{g.name}": share for g in task.facts.groups})
    return replace(plan, weight_bits=dict.fromkeys(plan.weight_bits, 8), activations="float")


def before_training(task: Task, plan: CompressionPlan) -> float:
    """The metric of the file of a network that was cut, its batch norms estimated anew, and not trained."""
    network = quantize_weights_(reestimate_(task.prune(plan), task.exporter.samples), plan.weight_bits)
    path = task.source.folder / "untrained.onnx"
    path.write_bytes(emit(task.exporter, network, plan, settle_weights_(network), trained=True))
    return task.quality(path, task.splits.val).value


def compare(task: Task, plan: CompressionPlan, share: float, seconds: float, repeats: int) -> None:
    """Train both ways in turn, and print the means."""
    ways = (replace(task, grams=None), task)
    trials = [[trained(way, plan, seconds, repeat) for way in ways] for repeat in range(repeats)]
    values, prunes = ([statistics.fmean(t[way][what] for t in trials) for way in (0, 1)] for what in (0, 1))
    print(
        f"{share:>8.0%}{f'{seconds:g} s':>10}{values[0]:>9.4f}{values[1]:>8.4f}{prunes[0]:>9.2f}{prunes[1]:>8.2f}",
        flush=True,
    )


def trained(task: Task, plan: CompressionPlan, seconds: float, repeat: int) -> tuple[float, float]:
    """(metric of the file, seconds of `prune`) of one trial."""
    request = Request(
        trial=repeat, plan=plan, origin="anchor", anchor=True, latency=_NOT_TIMED,
        train_s=seconds, deadline=time.monotonic() + _LONG_S, seen=_OTHER_SAMPLES * repeat,
    )  # fmt: skip
    record = evaluate(task, request, lambda _: None)
    assert record.state is TrialState.COMPLETE, record.reason
    assert record.measurement is not None
    assert record.measurement.val is not None
    return record.measurement.val, record.durations_s["prune"]


if __name__ == "__main__":
    main()
