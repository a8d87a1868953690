"""Makes the file of a stored trial again, from its plan and weights: in a workspace that was copied without its files.

The structure follows from the study file's model and the plan, the values from the trial's weights and its rounding
scales; for integer activations their ranges are measured again on the same samples, which the seed chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
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
from autocompress.study.prepare import calibration_samples, load_objects, load_state, sparsity_of
from autocompress.study.requests import Source


def rebuild_artifact(study: StudyRecord, plan: CompressionPlan, folder: Path, workspace: Path) -> bytes:
    """The bytes of a trial's file.

    Args:
        folder: of the trial, with `weights.safetensors` and, if any weights were rounded, `rounding.safetensors`.
    Raises:
        NotFoundError: the weights are not there.
        UsageError: the study's model or data cannot be loaded here.
    """
    weights = folder / "weights.safetensors"
    if not weights.is_file() or study.facts is None:
        raise NotFoundError(f"{folder} has no weights.safetensors, so its file cannot be made again")
    config = StudyConfig.model_validate(study.config)
    pickled = workspace / "artifacts" / study.name / "source.pkl"
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
    model.eval().requires_grad_(True)
    open_attention_(model, tuple(t[:2] for t in samples))
    exporter = make_exporter(model, samples)
    network = restore(model, plan, study.facts, folder, tuple(t[:2] for t in samples))
    artifact = emit(exporter, network, plan, settle_weights_(network), trained=True)
    check_artifact(artifact, network, samples, exact=plan.activations == "float")
    return artifact


def rebuild_cascade(study: StudyRecord, cascade: Cascade, plan: CompressionPlan, workspace: Path) -> bytes:
    """The bytes of a cascade's file: those of its two networks, made again where they are gone, and joined.

    Args:
        plan: of the first network.
    Raises:
        NotFoundError: of one of the two neither the file nor the weights are there.
        UsageError: as from `rebuild_artifact`.
    """
    folder = workspace / "artifacts" / study.name
    files = []
    for trial, its_plan in ((cascade.first, plan), (cascade.second, cascade.second_plan)):
        own = folder / ("baseline" if trial == 0 else f"trial-{trial}")
        path = own / "model.onnx"
        files.append(path.read_bytes() if path.is_file() else rebuild_artifact(study, its_plan, own, workspace))
    return join(files[0], files[1], threshold=cascade.threshold)


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
        unknown = network.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, unknown
    return network.eval()
