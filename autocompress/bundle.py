"""What a user takes away: the measured file, where it came from, a card with its numbers, and a way to run it.

The graph and the weights are the measured artifact byte for byte. Only its provenance is added, behind
the last byte: a protobuf message is the concatenation of its fields, so nothing is written anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.config import ERROR_METRICS, is_builtin_metric, top_k
from autocompress.errors import NotFoundError, UsageError, first_line
from autocompress.front.explain import (
    format_bytes,
    format_drop,
    format_ms,
    is_latency_tie,
    is_share,
    made_of,
    metric_name,
    plan_document,
    words,
)
from autocompress.front.hypervolume import metric_drop
from autocompress.front.summary import metric_direction, samples_of
from autocompress.records import FrontPoint, StudyRecord

RUN_SCRIPT = '''"""Run model.onnx, which lies beside this file; needs only onnxruntime and numpy.

python run.py input.npy    one .npy file per input of the model, the first axis is the batch
python run.py              random input of the right shape
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
          "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8",
          "tensor(int8)": "int8", "tensor(bool)": "bool"}


def random_input(spec):
    """A batch of one; other axes of open length get 8."""
    default = [1] + [8] * len(spec.shape)
    shape = [size if isinstance(size, int) else default[axis] for axis, size in enumerate(spec.shape)]
    dtype = np.dtype(DTYPES[spec.type])
    if dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)  # an index that every vocabulary has


def main(paths):
    session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
    specs = session.get_inputs()
    if paths and len(paths) != len(specs):
        sys.exit(f"the model has {len(specs)} input(s): {', '.join(s.name for s in specs)}; got {len(paths)} file(s)")
    arrays = [np.load(path) for path in paths] or [random_input(spec) for spec in specs]
    feeds = {s.name: a.astype(DTYPES[s.type], copy=False) for s, a in zip(specs, arrays)}
    for spec, output in zip(session.get_outputs(), session.run(None, feeds)):
        print(f"{spec.name}: shape {output.shape}, {output.dtype}")
        if output.ndim == 2 and output.shape[1] > 1:
            print(f"top class: {', '.join(str(c) for c in output.argmax(axis=1))}")


if __name__ == "__main__":
    main(sys.argv[1:])
'''
# Of classes that exclude one another; outputs that are labels or numbers of their own have no largest one.
_TOP_CLASS = """        if output.ndim == 2 and output.shape[1] > 1:
            print(f"top class: {', '.join(str(c) for c in output.argmax(axis=1))}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shipped:
    """The model file of the bundle: its bytes, the measured artifact's, and its inputs as (name, type, shape)."""

    size_bytes: int
    artifact_bytes: int
    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]


def write_bundle(point: FrontPoint, study: StudyRecord, *, workspace: Path, out: Path) -> Path:
    """Write `model.onnx`, `plan.json`, `model_card.md`, `run.py`, and weights and their rounding if they were kept.

    Everything is written to a hidden folder and renamed at the end: a bundle is whole or not there.

    Args:
        point: what to take away; its artifact is relative to `workspace`.
        out: a folder that does not exist yet, or is empty.
    Returns:
        `out`.
    Raises:
        UsageError: `out` is a file, a folder with something in it, or cannot be written.
        NotFoundError: the artifact is not in the workspace.
        UsageError: the artifact is damaged.
    """
    artifact = _artifact(point, study, workspace)
    with new_folder(out) as partial:
        shipped = _write_model(artifact, partial / "model.onnx", _provenance(point, study))
        plan = json.dumps(plan_document(point), indent=2) + "\n"
        (partial / "plan.json").write_text(plan, encoding="utf-8")
        (partial / "model_card.md").write_text(card_text(point, study, shipped), encoding="utf-8")
        (partial / "run.py").write_text(run_script(study), encoding="utf-8")
        for name in ("weights.safetensors", "rounding.safetensors"):
            if (kept := artifact.with_name(name)).is_file():
                shutil.copyfile(kept, partial / name)
    return out


def check_target(out: Path) -> Path:
    """The place of a new folder, behind the links that lead there.

    Raises:
        UsageError: there is a file or a folder with something in it, or nothing can be written there.
    """
    with _explained(out):
        target = out.resolve()
        home = next(path for path in (target, *target.parents) if path.exists())
        if home == target and not target.is_dir():
            raise UsageError(f"{out} is a file; name a folder for the bundle")
        if home == target and any(target.iterdir()):
            raise UsageError(f"{out} is not empty; name a new folder, or delete this one first")
        if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
            why = "may not be written" if home.is_dir() else "is a file"
            raise UsageError(f"cannot write {out}: {home} {why}; choose another folder with --out")
    return target


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `out` when the block ends, or is gone when that raises.

    An empty folder that is there gets what was written: somebody may stand in it, and it may be a disk of its own.

    Raises:
        UsageError: as `check_target`, or the disk refuses.
    """
    target = check_target(out)
    with _explained(out):
        exists = target.is_dir()
        partial = (target if exists else target.parent) / f".{target.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if not exists:
                partial.rename(target)
                return
            for path in list(partial.iterdir()):
                path.rename(target / path.name)
            partial.rmdir()
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}; choose another folder with --out") from error


def run_script(study: StudyRecord) -> str:
    """`run.py` of a bundle; only where the study's task is one of classes, or may be, does it name the largest."""
    task = study.config.get("task", {})
    kind, metric = task.get("kind", "auto"), task.get("metric", "accuracy")
    classes = kind == "classification" or (kind == "auto" and metric not in ERROR_METRICS)
    return RUN_SCRIPT if classes else RUN_SCRIPT.replace(_TOP_CLASS, "")


def _artifact(point: FrontPoint, study: StudyRecord, workspace: Path) -> Path:
    root = workspace.resolve()
    path = (root / point.artifact).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise NotFoundError(
            f"the file of trial {point.trial} of {study.name!r} is not in the workspace: {point.artifact}; "
            "was it moved or deleted? `autocompress front` lists what is there"
        )
    return path


def _provenance(point: FrontPoint, study: StudyRecord) -> dict[str, str]:
    return {
        "autocompress.study": study.name,
        "autocompress.trial": str(point.trial),
        "autocompress.seed": str(study.seed),
        "autocompress.config_hash": study.config_hash,
        "autocompress.versions": json.dumps(study.versions, sort_keys=True, separators=(",", ":")),
    }


def _write_model(artifact: Path, target: Path, provenance: dict[str, str]) -> _Shipped:
    import onnx  # an import of a third of a second, and only a bundle needs it

    original = artifact.read_bytes()
    model = _parsed(original, artifact)
    known = {entry.key for entry in model.metadata_props}
    extra = onnx.ModelProto()
    for key, value in provenance.items():
        if key not in known:
            extra.metadata_props.add(key=key, value=value)
    target.write_bytes(original + extra.SerializeToString())
    return _Shipped(size_bytes=target.stat().st_size, artifact_bytes=len(original), inputs=_inputs(model))


def _parsed(content: bytes, artifact: Path) -> Any:
    """The model in a file, or one sentence where the file is not one any more."""
    import onnx

    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's own class for it would be one more library to import
        raise UsageError(
            f"{artifact} is damaged, it is no ONNX model any more: {first_line(error)}; "
            "export another trial, or restore the file from a copy"
        ) from error
    return model


def _inputs(model: Any) -> tuple[tuple[str, str, tuple[int | str, ...]], ...]:
    import onnx

    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name not in stored:
            tensor = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
            found.append((value.name, dtype, shape))
    return tuple(found)


def card_text(point: FrontPoint, study: StudyRecord, shipped: _Shipped | None = None) -> str:
    """The card of a point, in Markdown.

    Args:
        shipped: what the bundle's own file says; without it the card leaves out what only the file knows.
    """
    size_bytes = shipped.artifact_bytes if shipped else point.size_bytes
    sections = [
        f"# {study.name}, trial {point.trial}",
        _headline(point, study),
        "## What was measured",
        _metrics(point, study, size_bytes),
        "Every number is of the exported file, run by the target runtime. The plan was selected on validation data; "
        f"test data was looked at once, at the end. {_about_intervals(point, study)}",
        *(["## What is in the file", _bytes(point, shipped)] if shipped else []),
        "## What was done to the model",
        "\n".join(f"- {line}" for line in made_of(point)),
        "`plan.json` names every group, layer and removed block.",
        *(["## How to run it", _usage(shipped)] if shipped else []),
        "## Where it came from",
        _origin(point, study),
    ]
    return "\n\n".join(sections) + "\n"


def _headline(point: FrontPoint, study: StudyRecord) -> str:
    if study.baseline is None:
        return "The study has no baseline to compare with."
    text = words(point, study.baseline, direction=metric_direction(study))
    return f"Against the dense model: {text}."


def _metrics(point: FrontPoint, study: StudyRecord, size_bytes: int) -> str:
    base = study.baseline
    metric = base.metric if base else str(study.config.get("task", {}).get("metric", "metric"))
    rows = ["| | this model | dense baseline | |", "|---|---|---|---|"]
    for split, label in (("val", "validation"), ("test", "test")):
        value, reference = getattr(point, split), getattr(base, split, None)
        count = samples_of(study, split)
        shown = _with_interval(value, getattr(point, f"{split}_ci"), count, metric)
        dense = _with_interval(reference, getattr(base, f"{split}_ci", None), count, metric)
        rows.append(f"| {metric_name(metric)}, {label} | {shown} | {dense} | {_lost(value, reference, study)} |")
    low, high = point.latency_ratio_ci
    tie = "; as fast within noise" if is_latency_tie(point) else ""
    zipped = format_bytes(base.compressed_bytes) if base and base.compressed_bytes else "-"
    rows += [
        f"| file | {format_bytes(size_bytes)} | {format_bytes(base.size_bytes) if base else '-'} | "
        f"{f'{base.size_bytes / size_bytes:.2f}x smaller' if base else ''} |",
        f"| zipped | {format_bytes(point.compressed_bytes)} | {zipped} | |",
        f"| {_latency_name(point)} | {format_ms(point.latency_ms)} | {format_ms(base.latency_ms) if base else '-'} "
        f"| ratio {point.latency_ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}{tie} |",
        f"| parameters | {point.params:,} | {f'{base.params:,}' if base else '-'} | |",
        f"| MACs for one sample | {point.macs:,} | {f'{base.macs:,}' if base else '-'} | |",
    ]
    return "\n".join(rows)


def _latency_name(point: FrontPoint) -> str:
    return "latency" if point.cascade is None else "latency, mean over validation samples"


def _with_interval(value: float | None, ci: tuple[float, float] | None, samples: int | None, metric: str) -> str:
    if value is None:
        return "not measured"
    digits = ".4f" if is_share(metric) else ".4g"
    known = [f"95 % {ci[0]:{digits}} to {ci[1]:{digits}}"] if ci else []
    known += [f"n = {samples}"] if samples else []
    return f"{value:{digits}}" + (f" ({', '.join(known)})" if known else "")


def _about_intervals(point: FrontPoint, study: StudyRecord) -> str:
    """What the intervals are, or why there are none."""
    metric = study.baseline.metric if study.baseline else str(study.config.get("task", {}).get("metric", "metric"))
    if point.val_ci is not None:
        is_count = metric == "accuracy" or top_k(metric) is not None
        kind = "Wilson's, of a share of samples" if is_count else "a bootstrap over the samples"
        return f"The intervals of the {metric_name(metric)} say what other samples could have given ({kind})."
    if is_builtin_metric(metric):
        return f"The study recorded no interval of the {metric_name(metric)}."
    return f"The {metric_name(metric)} has no interval: a metric of your own is called once, over all samples together."


def _lost(value: float | None, reference: float | None, study: StudyRecord) -> str:
    if value is None or reference is None:
        return ""
    direction = metric_direction(study)
    drop = metric_drop(value, reference, direction=direction)
    return f"{format_drop(abs(drop), direction=direction)} {'worse' if drop > 0 else 'better'}" if drop else "the same"


def _bytes(point: FrontPoint, shipped: _Shipped) -> str:
    added = shipped.size_bytes - shipped.artifact_bytes
    lines = [
        f"The measured artifact has {shipped.artifact_bytes:,} bytes. `model.onnx` here has {shipped.size_bytes:,}: "
        f"the same bytes, and {added:,} of provenance behind them. Graph and weights are unchanged."
    ]
    if shipped.artifact_bytes != point.size_bytes:
        lines.append(f"**The study recorded {point.size_bytes:,} bytes: the file was changed since it was measured.**")
    return "\n\n".join(lines)


def _usage(shipped: _Shipped) -> str:
    inputs = [f"`{name}`: {dtype}, [{', '.join(str(s) for s in shape)}]" for name, dtype, shape in shipped.inputs]
    feeds = ", ".join(f'"{name}": np.load("{name}.npy")' for name, _, _ in shipped.inputs)
    code = [
        "import numpy as np",
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        f"outputs = session.run(None, {{{feeds}}})",
        "print(outputs[0].shape)",
    ]
    listed = "\n".join(f"- {line}" for line in inputs)
    script = "`python run.py` does the same from the command line, on random input if no file is named."
    return "\n\n".join(["```python\n" + "\n".join(code) + "\n```", "Inputs:\n\n" + listed, script])


def _origin(point: FrontPoint, study: StudyRecord) -> str:
    device = study.device
    rows = {
        "study": f"{study.name}, created {study.created}",
        "trial": f"{point.trial} ({point.origin})",
        "seed": str(study.seed),
        "configuration": study.config_hash,
        "device": f"{device.name}, {device.runtime}, threads {device.threads}, batch {device.batch}; "
        f"{device.description or 'not described'}",
        "data": ", ".join(f"{split} {count}" for split, count in study.data_sizes.items()) or "sizes unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(study.versions.items())) or "unknown",
    }
    notes = list(study.facts.notes) if study.facts else []
    return "\n".join([f"- {name}: {value.strip()}" for name, value in rows.items()] + [f"- note: {n}" for n in notes])
