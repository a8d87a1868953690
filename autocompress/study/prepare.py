"""Everything that happens once per study before the first trial: data, teacher, space, baseline.

Runs in the worker process. What it finds out is handed to the driver as plain facts; the heavy
objects stay here, in a `Task`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.compress.compensate import Grams, input_grams
from autocompress.compress.drop import drop_blocks_
from autocompress.compress.factor import merge_factors
from autocompress.compress.fold import FoldedNorm, fold_
from autocompress.compress.importance import score_channels
from autocompress.compress.prune import kept_scores, prune, prune_to_plan
from autocompress.compress.sparsify import Sparsity
from autocompress.config import ModelConfig, StudyConfig
from autocompress.errors import UsageError
from autocompress.export.artifact import Exporter, emit, make_exporter
from autocompress.measure.device import Device, device_lock
from autocompress.measure.local import LocalDevice
from autocompress.measure.machine import cores
from autocompress.measure.quality import Metric, Quality, drop, metric_for, predict
from autocompress.measure.runtime import open_artifact
from autocompress.measure.size import compressed_bytes
from autocompress.plan import CompressionPlan, DistillPlan, Importance
from autocompress.records import Baseline, GroupFacts, LayerFacts, ModelFacts, Skip
from autocompress.recover.companions import Companion, companions_for
from autocompress.recover.damage import reestimate_
from autocompress.recover.data import DataSplits, Split, data_digest, split_data
from autocompress.recover.distill import hard_loss
from autocompress.recover.finetune import Answers, TeacherOutputs, Trainer, evaluate_in_torch, finetune_, prefers_bf16
from autocompress.recover.teacher import Ensemble
from autocompress.search.cascades import Pair
from autocompress.search.profile import measure_sensitivity
from autocompress.search.sensitivity import Sensitivity
from autocompress.space.attention import open_attention_
from autocompress.space.blocks import find_blocks, with_groups
from autocompress.space.factors import find_factors
from autocompress.space.groups import find_groups, input_sources
from autocompress.space.layers import count_macs, find_layers, output_positions
from autocompress.space.ranks import layers_to_factor
from autocompress.space.search_space import SearchSpace, kept_widths
from autocompress.study.requests import TEACHER_CUT, Prepared, Source
from autocompress.zoo.factory import build_model, load_data, load_metric, load_weights

Report = Callable[[str], None]
_CALIBRATION = 128
_IMPORTANCE_BATCHES = 8
_TEACHER_SHARE = 1 / 3
_PROFILE_SHARE = 0.06  # of the budget, at most
_NOT_ZEROED = ("depthwise", "recurrent")
_GLANCED = 1000  # samples
_PROFILED = 256  # samples
_HINTED = 32  # samples
_INTERVAL_SDS = 2 * 1.96  # width of a 95 % interval in standard deviations


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
        few = Split(
            inputs=tuple(t[:_GLANCED] for t in self.splits.val.inputs), targets=self.splits.val.targets[:_GLANCED]
        )
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
                self.splits.train, kind=config.data.augment, trainer=self.trainer,
                seed=config.search.seed,
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
        """The metric of a file on a split, computed by the runtime, and its interval."""
        outputs = predict(
            artifact,
            [t.numpy() for t in split.inputs],
            threads=cores(),
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


def prepare(source: Source, known: Baseline | None, report: Report) -> tuple[Task, Prepared]:
    """Load, check, train the teacher if there are no weights, find the space and measure the baseline.

    Args:
        known: the baseline on record when a study is taken up again; it is not measured twice.
        report: told what is going on.
    Raises:
        UsageError: the model or the data cannot be used; nothing of the budget has gone into search yet.
    """
    config, clock = source.config, Clock()
    torch.manual_seed(config.search.seed)
    torch.set_num_threads(cores())
    report("loading data and model")
    model, raw, metric = load_objects(source)
    splits = split_data(
        raw, config=config.data, metric=config.task.metric, seed=config.search.seed, kind=config.task.kind
    )
    _check_forward(model, splits)
    device = LocalDevice(config.device)
    trainer = _trainer(model, splits, config)
    clock.lap("setup")
    notes = [*splits.notes, *_provide_weights(model, source, splits, trainer, report)]
    model.eval().requires_grad_(True)
    clock.lap("teacher")
    report("tracing the model and finding its groups")
    samples = calibration_samples(splits.train)
    kept = open_attention_(model, tuple(t[:2] for t in samples))
    exporter = make_exporter(model, samples)
    facts = _find_facts(model, tuple(t[:2] for t in samples), config, notes, kept)
    clock.lap("setup")
    report("measuring the baseline")
    teacher = _teacher(model, source, tuple(t[:2] for t in samples), classes=splits.task == "classification")
    outputs = TeacherOutputs(teacher, splits.train, kind=config.data.augment, trainer=trainer, seed=config.search.seed)
    task = Task(
        source=source, model=model, splits=splits, metric=metric, trainer=trainer, outputs=outputs, facts=facts,
        device=device, exporter=exporter, baseline=known or _no_baseline(metric),
        grams=None if "compensation" in config.search.without else input_grams(model, samples),
    )  # fmt: skip
    if known is None:
        task.baseline = _measure_baseline(task)
    dense = source.workspace / task.baseline.artifact
    if teacher is model and trainer.device.type == "cpu" and dense.is_file():
        outputs.answers = _answers(dense)
    clock.lap("baseline")
    data = data_digest(splits)
    task.outputs_file = source.workspace / "profiles" / f"{_outputs_digest(task, data)}.safetensors"
    if task.outputs_file.exists():
        outputs.load(task.outputs_file)
    sensitivity = _sensitivity(task, data, report) if config.search.sampler == "front" else None
    clock.lap("profile")
    sizes = {name: len(split) for name, split in splits.items()}
    prepared = Prepared(
        facts=facts, baseline=task.baseline, data_sizes=sizes, durations_s=clock.seconds,
        sensitivity=sensitivity,
        direction=metric.direction, device_description=device.facts.description,
    )  # fmt: skip
    return task, prepared


def load_objects(source: Source) -> tuple[nn.Module, Any, Metric]:
    """Model with fresh weights (its own, if it was handed over), data as it was given, and metric of a study."""
    config = source.config
    if source.pickled is not None:
        model, raw, function = _unpickle(source.pickled)
        function = function or config.task.metric
    else:
        model = build_model(config.model, base=source.base, seed=config.search.seed)
        raw = load_data(config.data, base=source.base, seed=config.search.seed)
        custom = ":" in config.task.metric
        function = load_metric(config.task.metric, base=source.base) if custom else config.task.metric
    if not any(True for _ in model.parameters()):
        raise UsageError("the model has no parameters, so there is nothing to compress; give a trained network")
    return model, raw, metric_for(function, config.task.direction)


def _unpickle(path: Path) -> Any:
    try:
        return cloudpickle.loads(path.read_bytes())
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the model or data of this study cannot be loaded: {error}; resume it where their modules can be imported"
        ) from error


def _check_forward(model: nn.Module, splits: DataSplits) -> None:
    example = tuple(t[:2] for t in splits.train.inputs)
    try:
        with torch.no_grad():
            output = model.eval()(*example)
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in example)
        raise UsageError(
            f"the model fails on a batch of the data with shape {shapes}: {type(error).__name__}: "
            f"{str(error).splitlines()[0][:200] if str(error) else ''}; check that model and data belong together"
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


def _trainer(model: nn.Module, splits: DataSplits, config: StudyConfig) -> Trainer:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = min(config.search.batch_size, len(splits.train))
    inputs = tuple(t[:batch] for t in splits.train.inputs)
    bf16 = prefers_bf16(model, inputs, device)
    return Trainer(
        device=device,
        bf16=bf16,
        batch_size=batch,
        guard=lambda: device_lock(config.device.name, timing=False),
    )


def _provide_weights(
    model: nn.Module, source: Source, splits: DataSplits, trainer: Trainer, report: Report
) -> list[str]:
    """Load the teacher's weights or train them; notes for the report."""
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
    shared = source.workspace / "teachers" / f"{_teacher_digest(config, splits)}.safetensors"
    if shared.exists():
        load_weights(model, shared)
        _save_weights(model, own)
        return [f"the teacher was trained by an earlier study and taken from teachers/{shared.name}"]
    notes, finished = _train_teacher(model, config, splits, trainer, source.budget_s * _TEACHER_SHARE, report)
    for path in (own, shared) if finished else (own,):
        _save_weights(model, path)
    return notes


def _teacher(model: nn.Module, source: Source, example: tuple[Tensor, ...], *, classes: bool) -> nn.Module:
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


def _save_weights(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}, unfinished)
    unfinished.replace(path)


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


def _teacher_digest(config: StudyConfig, splits: DataSplits) -> str:
    what = [config.model.model_dump(mode="json"), config.search.seed, config.search.batch_size, config.data.augment]
    return _short([*what, data_digest(splits)])


def _find_facts(
    model: nn.Module, example: tuple[Tensor, ...], config: StudyConfig, notes: list[str], skips: Sequence[Skip] = ()
) -> ModelFacts:
    layers, unquantized = find_layers(model, skip=config.space.skip)
    groups, unpruned = find_groups(model, example, round_to=config.space.round_to, skip=config.space.skip)
    group_of = {layer: g for g in groups for layer in g.layers}
    sources, positions = input_sources(model, example, groups), output_positions(model, example)
    named = tuple(
        replace(
            layer,
            group=group_of[layer.name].name if layer.name in group_of else None,
            out_channels=_outputs(layer, group_of.get(layer.name)),
            sources=sources.get(layer.name, {}),
            positions=0 if layer.kind == "embedding" else positions.get(layer.name, 1),
        )
        for layer in layers
    )
    blocks = find_blocks(model, example, skip=config.space.skip) if config.space.remove_blocks else []
    factors, whole = find_factors(model, example, layers_to_factor(config.space.rank_ratio, named))
    return ModelFacts(
        layers=tuple(replace(layer, factors=factors.get(layer.name)) for layer in named),
        groups=tuple(groups),
        skips=(*unquantized, *skips, *unpruned, *_in_float(model), *whole),
        notes=tuple(notes),
        blocks=tuple(with_groups(model, example, blocks, groups)),
        batch_norms=any(isinstance(m, _BatchNorm) for m in model.modules()),
    )


def _in_float(model: nn.Module) -> list[Skip]:
    """Layers that the runtime computes in float whatever their weights are stored in."""
    kinds = (nn.GRU, nn.RNN)
    reason = "the runtime has no integer kernel for it: few bits make the file smaller, not faster"
    return [Skip(name=n, what="integers", reason=reason) for n, m in model.named_modules() if isinstance(m, kinds)]


def _outputs(layer: LayerFacts, group: GroupFacts | None) -> int:
    """Outputs of a layer; of an attention's joined projection, which holds each channel three times, a third."""
    is_attention = group is not None and group.name not in group.layers
    return group.channels if group is not None and is_attention else layer.out_channels


def _answers(artifact: Path) -> Answers:
    """What a file says, computed by the runtime, which takes a fraction of the time that torch takes."""
    run = open_artifact(artifact, runtime="onnxruntime", threads=cores())
    return lambda inputs: torch.from_numpy(run([t.contiguous().numpy() for t in inputs]))


def _measure_baseline(task: Task) -> Baseline:
    path = task.source.folder / "baseline" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(emit(task.exporter, task.model, CompressionPlan(), {}, trained=True))
    latency = task.device.measure(path, path)
    val = task.quality(path, task.splits.val)
    return Baseline(
        metric=task.metric.name,
        val=val.value,
        val_ci=val.ci,
        test=None,
        size_bytes=path.stat().st_size,
        compressed_bytes=compressed_bytes(path.read_bytes()),
        latency_ms=latency.latency_ms / latency.ratio,
        params=sum(p.numel() for p in task.model.parameters()),
        macs=count_macs(task.model, task.example),
        artifact=str(path.relative_to(task.source.workspace)),
        latency_sd=max(abs(latency.ratio - 1), (latency.ratio_ci[1] - latency.ratio_ci[0]) / _INTERVAL_SDS),
    )


def _no_baseline(metric: Metric) -> Baseline:
    return Baseline(metric=metric.name, val=0.0, test=None, size_bytes=1, latency_ms=1.0, params=0, macs=0, artifact="")


def _sensitivity(task: Task, data: str, report: Report) -> Sensitivity:
    """Measured once per model and data, and kept in the workspace for every later study."""
    config = task.source.config
    path = task.source.workspace / "profiles" / f"{_profile_digest(task, data)}.json"
    if path.exists():
        return Sensitivity.from_dict(json.loads(path.read_text()))
    low = [bits for bits in config.space.weight_bits if bits < 8]
    space = SearchSpace(config=config.space, facts=task.facts)

    def narrow(widths: dict[str, int]) -> nn.Module:
        scores = task.scores(config.space.importance[0])
        return prune(task.model, widths, scores, task.example, grams=task.grams)

    found = measure_sensitivity(
        task.model,
        task.facts,
        _spread(task.splits.train, _PROFILED),
        narrow,
        low_bits=sorted(low)[:2],
        ratios=sorted((r for r in space.rank_ratios if r > 0), reverse=True),
        seconds=_PROFILE_SHARE * task.source.budget_s,
        report=report,
        task=task.splits.task,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(found.to_dict()))
    unfinished.replace(path)
    return found


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _profile_digest(task: Task, data: str) -> str:
    """Of everything that a sensitivity depends on, the time allowed for it included."""
    config = task.source.config
    asked = [config.space.model_dump(mode="json"), "compensation" in config.search.without]
    return _short([data, _weights_digest(task.model), *asked, round(_PROFILE_SHARE * task.source.budget_s)])


def _outputs_digest(task: Task, data: str) -> str:
    """Of everything that the teacher's outputs on the augmented data depend on."""
    trainer, config = task.trainer, task.source.config
    weights = _weights_digest(task.outputs.teacher or task.model)
    return _short([data, weights, config.data.augment, config.search.seed, trainer.bf16, trainer.device.type])


def _short(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def calibration_samples(train: Split) -> tuple[Tensor, ...]:
    """The inputs that ranges of activations are measured on, and files compared with torch."""
    return _spread(train, _CALIBRATION)


def _spread(split: Split, count: int) -> tuple[Tensor, ...]:
    """About `count` samples from all over the split."""
    step = max(1, len(split) // count)
    return tuple(t[::step][:count].contiguous() for t in split.inputs)


def _some_batches(split: Split, size: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    starts = range(0, min(len(split), size * _IMPORTANCE_BATCHES), size)
    return [(tuple(t[s : s + size] for t in split.inputs), split.targets[s : s + size]) for s in starts]


def each_second(report: Report, text: str) -> Callable[[float], None]:
    """A function of the share that is done which reports it about once a second."""
    said = time.monotonic()

    def tell(share: float) -> None:
        nonlocal said
        if time.monotonic() - said > 1:
            said = time.monotonic()
            report(f"{text}, {share:.0%}")

    return tell


def load_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name."""
    state: dict[str, Tensor] = load_file(path)
    return state


class Clock:
    """Seconds per stage, from one lap to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Charge what has passed since the last lap to a stage."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
