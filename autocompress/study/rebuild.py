"""Makes the file of a stored trial again, from its plan and weights: in a workspace that was copied without its files.

The structure follows from the study file's model and the plan, the values from the trial's weights and its rounding
scales; for integer activations their ranges are measured again on the same samples, which the seed chooses. Other
versions of the libraries may write other bytes: a file of another size than the measured one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import FakeQuantize, quantize_weights_, settle_weights_
from autocompress.compress.sparsify import sparsify_
from autocompress.config import StudyConfig
from autocompress.errors import NotFoundError
from autocompress.export.artifact import emit, make_exporter
from autocompress.export.cascade import join
from autocompress.export.check import check_artifact
from autocompress.plan import CompressionPlan
from autocompress.records import Cascade, ModelFacts, StudyRecord
from autocompress.recover.data import split_data
from autocompress.space.attention import open_attention_
from autocompress.study.load import bake_parametrizations_, calibration_samples, load_objects, unfreeze_
from autocompress.study.requests import Source
from autocompress.study.task import load_state, sparsity_of
from autocompress.zoo.factory import load_weights

_DENSE = "baseline"  # folder of the dense network's file; its weights are the teacher's, beside it


def rebuild_artifact(
    study: StudyRecord, plan: CompressionPlan, folder: Path, workspace: Path, *, size_bytes: int | None = None
) -> bytes:
    """The bytes of a trial's file, or of the dense network's.

    Args:
        folder: of the trial, with `weights.safetensors` and, if any weights were rounded, `rounding.safetensors`.
        size_bytes: of the file that was measured; None: whatever comes out is taken for it.
    Raises:
        NotFoundError: the weights are not there, or what comes out of them has another size.
        UsageError: the study's model or data cannot be loaded here.
    """
    dense = folder.name == _DENSE
    weights = folder.with_name("teacher.safetensors") if dense else folder / "weights.safetensors"
    handed_over = dense and folder.with_name("source.pkl").is_file()  # it has its weights in it
    if not (weights.is_file() or handed_over) or study.facts is None:
        raise NotFoundError(f"{weights.parent} has no {weights.name}, so its file cannot be made again")
    model, samples = _dense_model(study, workspace)
    exporter = make_exporter(model, samples)
    network = model if dense else restore(model, plan, study.facts, folder, tuple(t[:2] for t in samples))
    artifact = emit(exporter, network, plan, settle_weights_(network), trained=True)
    check_artifact(artifact, network, samples, exact=plan.activations == "float")
    return _of_size(artifact, size_bytes, f"{folder.name} of study {study.name!r}")


def _dense_model(study: StudyRecord, workspace: Path) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The study's model as it was compressed, and the samples for calibration.

    Its weights matter also for a trial that has its own: what stays float beside a mask is decided by its ranges.
    """
    config = StudyConfig.model_validate(study.config)
    folder = workspace / "artifacts" / study.name
    pickled = folder / "source.pkl"
    source = Source(
        config=config, workspace=workspace, budget_s=config.search.budget,
        base=Path(study.base) if study.base else None, pickled=pickled if pickled.exists() else None,
    )  # fmt: skip
    torch.manual_seed(config.search.seed)
    model, raw, _ = load_objects(source)
    splits = split_data(
        raw, config=config.data, metric=config.task.metric, seed=config.search.seed, kind=config.task.kind
    )
    samples = calibration_samples(splits.train)
    if (teacher := folder / "teacher.safetensors").is_file():
        load_weights(model, teacher)
    unfreeze_(model)
    bake_parametrizations_(model.eval())
    open_attention_(model, tuple(t[:2] for t in samples))
    return model, samples


def _of_size(artifact: bytes, size_bytes: int | None, what: str) -> bytes:
    """The artifact, unless it is certainly not the one that was measured."""
    if size_bytes is not None and len(artifact) != size_bytes:
        raise NotFoundError(
            f"the file of {what} is gone and cannot be made again here: {size_bytes} bytes were measured, "
            f"{len(artifact)} came out; copy the file itself, or install the versions that the study was made with"
        )
    return artifact


def rebuild_cascade(
    study: StudyRecord, cascade: Cascade, plan: CompressionPlan, workspace: Path, *, size_bytes: int | None = None
) -> bytes:
    """The bytes of a cascade's file: those of its two networks, made again where they are gone, and joined.

    Args:
        plan: of the first network.
        size_bytes: of the file that was measured; None: whatever comes out is taken for it.
    Raises:
        NotFoundError: of one of the two neither the file nor the weights are there, or another size comes out.
        UsageError: as from `rebuild_artifact`.
    """
    folder = workspace / "artifacts" / study.name
    files = []
    for trial, its_plan in ((cascade.first, plan), (cascade.second, cascade.second_plan)):
        own = folder / (_DENSE if trial == 0 else f"trial-{trial}")
        path = own / "model.onnx"
        files.append(path.read_bytes() if path.is_file() else rebuild_artifact(study, its_plan, own, workspace))
    joined = join(files[0], files[1], threshold=cascade.threshold)
    return _of_size(joined, size_bytes, f"the cascade of trials {cascade.first} and {cascade.second} of {study.name!r}")


def restore(
    model: nn.Module, plan: CompressionPlan, facts: ModelFacts, folder: Path, example: Sequence[Tensor]
) -> nn.Module:
    """The network of a trial as it was after its training, its weights still rounded by parametrizations.

    Args:
        model: the study's architecture with any weights.
    """
    any_scores = {g.name: torch.zeros(g.channels) for g in facts.groups}  # the channels' values come from the file
    network = prune_to_plan(model, plan, facts, any_scores, example)
    network.load_state_dict(load_state(folder / "weights.safetensors"))
    sparsify_(network, sparsity_of(plan, facts))  # for its places; which weights are zero is in the file
    quantize_weights_(network, plan.weight_bits, plan.levels)
    if (rounding := folder / "rounding.safetensors").is_file():
        state = load_state(rounding)
        _resize_tables_(network, state)
        unknown = network.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, unknown
    return network.eval()


def _resize_tables_(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make every table of values as long as the stored one: k-means over trained weights may merge other values."""
    for name, module in network.named_modules():
        stored = state.get(f"{name}.magnitudes")
        if isinstance(module, FakeQuantize) and stored is not None:
            module.magnitudes = torch.empty_like(stored)
