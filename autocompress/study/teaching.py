"""The dense network's weights, given or trained, and the network that teaches."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.config import ModelConfig, StudyConfig
from autocompress.errors import UsageError
from autocompress.plan import DistillPlan
from autocompress.recover.data import DataSplits
from autocompress.recover.finetune import finetune_
from autocompress.recover.outputs import TeacherOutputs
from autocompress.recover.teacher import Ensemble
from autocompress.recover.trainer import Trainer
from autocompress.study.digests import teacher_digest
from autocompress.study.progress import Report, each_second
from autocompress.study.requests import TEACHER_CUT, Source
from autocompress.zoo.factory import build_model, load_weights

_TEACHER_SHARE = 1 / 3  # of the budget, at most


def provide_weights(
    model: nn.Module, source: Source, splits: DataSplits, trainer: Trainer, report: Report
) -> list[str]:
    """Load the dense network's weights or train them; notes for the report."""
    config, own = source.config, source.folder / "teacher.safetensors"
    if source.pickled is not None:
        return []
    if own.exists():  # the study is taken up again: its teacher must not change
        load_weights(model, own)
        return []
    if config.model.weights is not None:
        load_weights(model, (source.base or Path.cwd()) / config.model.weights)
        _save_weights(model, own)
        return []
    shared = source.workspace / "teachers" / f"{teacher_digest(config, splits)}.safetensors"
    if shared.exists():
        load_weights(model, shared)
        _save_weights(model, own)
        return [f"the teacher was trained by an earlier study and taken from teachers/{shared.name}"]
    notes, finished = _train_teacher(model, config, splits, trainer, source.budget_s * _TEACHER_SHARE, report)
    for path in (own, shared) if finished else (own,):
        _save_weights(model, path)
    return notes


def teacher_of(model: nn.Module, source: Source, example: tuple[Tensor, ...], *, classes: bool) -> nn.Module:
    """The model, or the networks that the study file names, as one."""
    config, base = source.config, source.base
    members = [model] if config.teacher.with_model or not config.teacher.networks else []
    for entry in config.teacher.networks:
        network = build_model(ModelConfig(factory=entry.factory, args=entry.args), base=base, seed=config.search.seed)
        load_weights(network, (base or Path.cwd()) / entry.weights)
        with torch.no_grad():
            wanted, got = model(*example).shape, network.eval()(*example).shape
        if got != wanted:
            raise UsageError(
                f"the teacher {entry.factory} gives outputs of shape {list(got)} for a batch of 2, the model "
                f"{list(wanted)}; a teacher must know the same classes in the same order"
            )
        members.append(network.requires_grad_(False))
    return members[0] if len(members) == 1 else Ensemble(members, classes=classes).eval()


def _train_teacher(
    model: nn.Module, config: StudyConfig, splits: DataSplits, trainer: Trainer, limit_s: float, report: Report
) -> tuple[list[str], bool]:
    steps = config.model.epochs * max(1, len(splits.train) // trainer.batch_size)
    alone = TeacherOutputs(None, splits.train, kind=config.data.augment, trainer=trainer, seed=config.search.seed)
    outcome = finetune_(
        model, alone, trainer=trainer, seconds=limit_s, steps=steps, learning_rate=config.model.learning_rate,
        distill=DistillPlan(), seed=config.search.seed, on_step=each_second(report, "training the teacher"),
    )  # fmt: skip
    if not outcome.finite:
        raise UsageError(
            f"training the teacher diverged at a learning rate of {config.model.learning_rate}; "
            "lower model.learning_rate, or give trained weights with model.weights"
        )
    if outcome.steps < steps:
        return [
            f"{TEACHER_CUT} after {outcome.seconds:.0f} s, at {outcome.steps} of {steps} steps, so all is compared "
            "with a worse network than it could be; give a longer --budget, or trained weights with model.weights"
        ], False
    return [], True


def _save_weights(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")  # another study may write the same file
    save_file({name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}, unfinished)
    unfinished.replace(path)
