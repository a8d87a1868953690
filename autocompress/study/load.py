"""Model, data and metric of a study as objects, and whether they belong together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.errors import UsageError, first_line
from autocompress.measure.quality import Metric, metric_for
from autocompress.recover.data import DataSplits, Split
from autocompress.study.requests import Source
from autocompress.zoo.factory import build_model, load_data, load_metric

_CALIBRATION = 128


def load_objects(source: Source) -> tuple[nn.Module, Any, Metric]:
    """Model with fresh weights (its own, if it was handed over), data as it was given, and metric of a study."""
    config = source.config
    if source.pickled is not None:
        model, raw, function = _unpickle(source.pickled)
    else:
        model = build_model(config.model, base=source.base, seed=config.search.seed)
        raw = load_data(config.data, base=source.base, seed=config.search.seed)
        function = None
    function = function or config.task.metric
    if isinstance(function, str) and ":" in function:
        function = load_metric(function, base=source.base)
    if not any(True for _ in model.parameters()):
        raise UsageError("the model has no parameters, so there is nothing to compress; give a trained network")
    return model, raw, metric_for(function, config.task.direction)


def check_forward(model: nn.Module, splits: DataSplits) -> None:
    """Refuse a model that does not take the data, or does not give what the task needs, also while it is trained.

    Raises:
        UsageError: what was expected, what came, and what to do.
    """
    if any(p.dtype == torch.float64 for p in model.parameters()):
        raise UsageError(
            "the model has float64 parameters, files hold float32; call model.float() and give float32 data"
        )
    example = tuple(t[:2] for t in splits.train.inputs)
    try:
        with torch.no_grad():
            output = model.eval()(*example)
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in example)
        double = any(t.dtype == torch.float64 for t in example)
        raise UsageError(
            f"the model fails on a batch of the data with shape {shapes}: {type(error).__name__}: "
            f"{first_line(error)}; {'give float32 inputs' if double else 'check that model and data belong together'}"
        ) from error
    if not isinstance(output, Tensor):
        raise UsageError(
            f"the model returns a {type(output).__name__}, one tensor was expected; "
            "wrap it in a module whose forward returns the logits alone"
        )
    if output.ndim < 1 or len(output) != 2:
        raise UsageError(f"the model maps a batch of 2 to a tensor of shape {list(output.shape)}; keep the batch first")
    if splits.classes is not None and (output.ndim != 2 or output.shape[1] < splits.classes):
        raise UsageError(
            f"the model gives outputs of shape {list(output.shape)} for a batch of 2, but the data has "
            f"{splits.classes} classes; one output per class was expected"
        )
    if splits.task != "classification" and output[0].numel() != splits.train.targets[0].numel():
        raise UsageError(
            f"the model gives outputs of shape {list(output.shape)} for a batch of 2, but a sample has targets of "
            f"shape {list(splits.train.targets.shape[1:])}; one output per target was expected"
        )
    _check_training(model, example, output.shape)


def _check_training(model: nn.Module, example: tuple[Tensor, ...], wanted: torch.Size) -> None:
    """The same in train mode, in which some networks return more than their logits."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = copy.deepcopy(model).train()(*example)
    except Exception as error:
        raise UsageError(
            f"the model works in eval mode and fails in train mode: {type(error).__name__}: {first_line(error)}; "
            "its forward must do both"
        ) from error
    if not isinstance(output, Tensor) or output.shape != wanted:
        got = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UsageError(
            f"the model returns {got} in train mode, the logits alone, {list(wanted)}, were expected; switch auxiliary "
            "outputs off, or wrap it in a module whose forward returns the logits alone"
        )


def unfreeze_(model: nn.Module) -> None:
    """All of a network is compressed and trained, whatever was frozen; whole numbers have no gradients."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def bake_parametrizations_(model: nn.Module) -> nn.Module:
    """Replace weights that a parametrization of the user's own computes by what it computes, in place.

    Weight norm and spectral norm are ways to train. A file holds what they came to, and so does all that is cut from
    the model.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in tuple(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
    return model


def calibration_samples(train: Split) -> tuple[Tensor, ...]:
    """The inputs that ranges of activations are measured on, and files compared with torch."""
    return train.spread(_CALIBRATION)


def _unpickle(path: Path) -> Any:
    try:
        return cloudpickle.loads(path.read_bytes())
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the model or data of this study cannot be loaded: {error}; resume it where their modules can be imported"
        ) from error
