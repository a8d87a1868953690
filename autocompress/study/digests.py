"""Names of what is kept in the workspace for later studies: digests of all that it depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from torch import nn

from autocompress.config import StudyConfig
from autocompress.recover.data import DataSplits, data_digest
from autocompress.study.task import Task


def teacher_digest(config: StudyConfig, splits: DataSplits) -> str:
    """Of everything that the weights of a trained teacher depend on."""
    what = [config.model.model_dump(mode="json"), config.search.seed, config.search.batch_size, config.data.augment]
    return _short([*what, data_digest(splits)])


def profile_digest(task: Task, data: str, asked: list[Any]) -> str:
    """Of everything that a sensitivity depends on but the time allowed for it.

    Args:
        data: digest of the data.
        asked: what is measured on the layers, groups and blocks, as JSON values.
    """
    of_model = replace(task.facts, notes=()).to_dict()
    return _short([data, _weights_digest(task.model), *_forward_digest(task), of_model, *asked, task.grams is None])


def outputs_digest(task: Task, data: str) -> str:
    """Of everything that the teacher's outputs on the training data and its views depend on."""
    trainer, config = task.trainer, task.source.config
    weights = _weights_digest(task.outputs.teacher or task.model)
    asked = [config.data.augment, config.search.seed, config.teacher.model_dump(mode="json")]
    return _short([data, weights, *_forward_digest(task), *asked, trainer.bf16, trainer.device.type])


def _forward_digest(task: Task) -> list[str]:
    """Of what the model computes with its weights, as its dense file says it; nothing if the file is gone."""
    dense = task.source.workspace / task.baseline.artifact
    return [hashlib.sha256(dense.read_bytes()).hexdigest()] if dense.is_file() else []


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _short(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
