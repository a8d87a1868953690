"""What trials are evaluated with, made once per study: the heavy objects, and what is worked out from them on use."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.compress.compensate import Grams, input_grams
from autocompress.compress.drop import drop_blocks_
from autocompress.compress.factor import merge_factors
from autocompress.compress.fold import FoldedNorm, fold_
from autocompress.compress.importance import score_channels
from autocompress.compress.prune import kept_scores, prune_to_plan
from autocompress.compress.sparsify import Sparsity
from autocompress.export.artifact import Exporter
from autocompress.measure.device import Device
from autocompress.measure.machine import cores
from autocompress.measure.quality import Metric, Quality, drop, predict
from autocompress.plan import CompressionPlan, DistillPlan, Importance
from autocompress.records import Baseline, ModelFacts
from autocompress.recover.companions import Companion, companions_for
from autocompress.recover.damage import reestimate_
from autocompress.recover.data import DataSplits, Split
from autocompress.recover.distill import hard_loss
from autocompress.recover.outputs import TeacherOutputs
from autocompress.recover.teacher import Ensemble
from autocompress.recover.trainer import Trainer, evaluate_in_torch
from autocompress.search.cascades import Pair
from autocompress.space.search_space import kept_widths
from autocompress.study.requests import Source

_IMPORTANCE_BATCHES = 8
_NOT_ZEROED = ("depthwise", "recurrent")
_GLANCED = 1000  # samples
_HINTED = 32  # samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A trained network that another one is cut from: its plan, and the file of its float weights."""

    plan: CompressionPlan
    weights: Path


@dataclass(slots=True, kw_only=True)
class Task:
    """What trials are evaluated with; lives as long as the worker process."""

    source: Source
    model: nn.Module
    splits: DataSplits
    metric: Metric
    trainer: Trainer
    outputs: TeacherOutputs
    facts: ModelFacts
    device: Device
    exporter: Exporter
    baseline: Baseline
    grams: Grams | None
    outputs_file: Path | None = None
    answers: dict[int, np.ndarray] = field(default_factory=dict)  # of trials' files on the validation data
    pairs: tuple[tuple[int, ...], list[Pair]] | None = None  # trials, and the ways to join two of them
    _teacher_value: float | None = None
    _joint: tuple[tuple[str, ...], TeacherOutputs] | None = None
    _scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs for one small forward, each [2, ...]."""
        return tuple(t[:2] for t in self.exporter.samples)

    def prune(self, plan: CompressionPlan, heir_of: Ancestor | None = None) -> nn.Module:
        """The network of a plan before any training, cut from the teacher or from a network that was trained before."""
        scores, samples = self.scores(plan.importance), self.exporter.samples
        if heir_of is None:
            return prune_to_plan(self.model, plan, self.facts, scores, self.example, grams=self.grams, samples=samples)
        # Blocks that the ancestor lacks are put back, untrained: the heir lacks them too, and groups keep their roots.
        # Its factors are multiplied out, and found again at the heir's rank: at the ancestor's own nothing is lost.
        whole_plan = replace(heir_of.plan, removed_blocks=(), rank_ratio={})
        ancestor = prune_to_plan(self.model, whole_plan, self.facts, scores, self.example)
        ancestor.load_state_dict(merge_factors(load_state(heir_of.weights), heir_of.plan), strict=False)
        before = kept_widths(self.facts, whole_plan)
        same = all(before[name] == width for name, width in kept_widths(self.facts, plan).items() if width)
        grams = None
        if self.grams is not None and not same:
            whole = drop_blocks_(copy.deepcopy(ancestor), heir_of.plan.removed_blocks)
            grams = input_grams(whole, samples)
        left = kept_scores(scores, before)
        return prune_to_plan(ancestor, plan, self.facts, left, self.example, grams=grams, samples=samples)

    def scores(self, criterion: Importance) -> dict[str, Tensor]:
        """Importance of every channel by `criterion`, computed on first use."""
        if criterion not in self._scores:
            self._scores[criterion] = score_channels(
                self.model,
                self.facts.groups,
                criterion,
                _some_batches(self.splits.train, self.trainer.batch_size),
                hard_loss,
                seed=self.source.config.search.seed,
            )
        return self._scores[criterion]

    @torch.no_grad()
    def glance(self, network: nn.Module) -> float:
        """About how much of the metric a network in training loses, on a part of the validation data, in torch.

        Only good for deciding whether to go on; what is reported is measured on the file.
        """
        few = self.splits.val.sample(_GLANCED)
        targets = few.targets.numpy()
        if self._teacher_value is None:
            dense = copy.deepcopy(self.model).to(self.trainer.device)
            self._teacher_value = self._value(dense, few, targets)
        value = self._value(network.eval(), few, targets)
        network.train()
        return drop(self.metric, self._teacher_value, value)

    def fold_norms_(self, network: nn.Module) -> list[FoldedNorm]:
        """Fold the batch norms of an untrained network into its layers, in place, with statistics of its own.

        Training goes on without them: a step takes two thirds of the time, and ten seconds bring what took forty.
        """
        pairs = [(layer, norm) for layer, norm in self.exporter.pairs if self._shifts(norm)]
        return fold_(reestimate_(network, self.exporter.samples), pairs)

    def _shifts(self, norm: str) -> bool:
        """Whether a norm has a scale and a shift of its own, so that it can be put back."""
        return getattr(self.model.get_submodule(norm), "bias", None) is not None

    def keep_outputs(self) -> None:
        """Leave the teacher's outputs so far in the workspace, for this study when it is resumed and for later ones."""
        if self.outputs_file is not None:
            self.outputs_file.parent.mkdir(parents=True, exist_ok=True)
            self.outputs.save(self.outputs_file)

    def outputs_with(self, members: Sequence[Ancestor]) -> TeacherOutputs:
        """The teacher's outputs, or those of its mean with trained networks; the last such teacher is kept."""
        if not members:
            return self.outputs
        names = tuple(str(member.weights) for member in members)
        if self._joint is None or self._joint[0] != names:
            networks = [self.model, *(self.prune(m.plan, m).requires_grad_(False) for m in members)]
            config = self.source.config
            joint = TeacherOutputs(
                Ensemble(networks, classes=self.splits.task == "classification").eval(),
                self.splits.train, kind=config.data.augment, trainer=self.trainer, seed=config.search.seed,
            )  # fmt: skip
            self._joint = (names, joint)
        return self._joint[1]

    def sparsity(self, plan: CompressionPlan) -> Sparsity | None:
        """Which weights a plan zeroes."""
        return sparsity_of(plan, self.facts)

    def companions(self, network: nn.Module, distill: DistillPlan) -> list[Companion]:
        """What accompanies the training of a network beside the teacher's outputs."""
        few = tuple(t[:_HINTED] for t in self.exporter.samples)
        return companions_for(network, self.model, distill, few, self.trainer.device)

    def _value(self, network: nn.Module, split: Split, targets: Any) -> float:
        return self.metric(evaluate_in_torch(network, split, self.trainer).cpu().numpy(), targets)

    def quality(self, artifact: Path, split: Split) -> Quality:
        """The metric of a file on a split, computed by the runtime, and its interval.

        With dynamic activations it is that of batches as large as the device's: answers depend on them.
        """
        outputs = predict(
            artifact,
            [t.numpy() for t in split.inputs],
            threads=cores(),
            device_batch=self.device.facts.batch,
            runtime=self.device.facts.runtime,
        )
        return self.metric.judge(outputs, split.targets.numpy())


def sparsity_of(plan: CompressionPlan, facts: ModelFacts) -> Sparsity | None:
    """Which weights a plan zeroes: not those of 1 bit, which have no zero, nor depthwise ones, which are few.

    Nor those of recurrent layers, which are several matrices under one name.
    """
    if plan.sparsity == 0:
        return None
    layers = [n.name for n in facts.layers if n.kind not in _NOT_ZEROED and plan.weight_bits.get(n.name, 32) > 1]
    return Sparsity(share=plan.sparsity, kind=plan.sparsity_kind, layers=tuple(layers)) if layers else None


def load_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name."""
    state: dict[str, Tensor] = load_file(path)
    return state


def _some_batches(split: Split, size: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """A few batches, each with samples from all over the split."""
    count = min(_IMPORTANCE_BATCHES, math.ceil(len(split) / size))
    few = split.sample(size * count)
    parts = [few.take(torch.arange(start, len(few), count)) for start in range(count)]
    return [(part.inputs, part.targets) for part in parts]
