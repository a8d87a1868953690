"""What the teacher says of the training data, which a training sees as it is or in views."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.recover.augment import VIEWS, Augment, Views, augment
from autocompress.recover.read import Split
from autocompress.recover.trainer import Trainer, forward

_MOST_BYTES = 256 * 2**20  # of the teacher's outputs on disk, and of those on all views in memory
_AT_ONCE = 2**16  # samples whose probabilities are in memory together
Answers = Callable[[tuple[Tensor, ...]], Tensor]


class TeacherOutputs:
    """The teacher's outputs on the training data, computed ahead or on first use, and kept.

    All trainings of a study visit the samples in the same order, so the teacher answers to each once. A training of a
    few epochs sees the data as it is, which recovers most; one of many sees it in fixed `Views`, each kept like data
    of its own, or it would learn the teacher's answers by heart.
    Without a teacher there is nothing to keep, and every batch is augmented afresh.

    Attributes:
        answers: computes what the teacher says if something is faster at that than the teacher itself.

    Args:
        teacher: in eval mode; None for training without one. A copy of it is kept on the trainer's device.
        train: the training split.
        kind: augmentation of the views, or of the batches where there is no teacher.
        seed: of the augmentation.
    """

    def __init__(self, teacher: nn.Module | None, train: Split, *, trainer: Trainer, kind: Augment, seed: int) -> None:
        self._trainer = trainer
        self.teacher = teacher
        self.answers: Answers | None = None
        if teacher is not None and trainer.device.type != "cpu":
            self.teacher = copy.deepcopy(teacher).to(trainer.device)
        self._kind, self._generator = kind, torch.Generator().manual_seed(seed + 1)
        self.train = train
        self._views: Views | None = None
        self._outputs: Tensor | None = None
        self._known = torch.zeros(len(train), dtype=torch.bool)
        self._kept = 0  # known when they were last written or read

    def save(self, path: Path) -> None:
        """Write what is known for a later study of the same teacher and data, if there is more than before."""
        known = int(self._known.sum())
        if self._outputs is None or known == self._kept or self._outputs.nbytes > _MOST_BYTES:
            return
        unfinished = path.with_suffix(f".{os.getpid()}.part")  # another study may write the same file
        save_file({"outputs": self._outputs, "known": self._known}, unfinished)
        unfinished.replace(path)
        self._kept = known

    def load(self, path: Path) -> None:
        """Take over what an earlier study has written.

        Raises:
            ValueError: the file is of other data.
        """
        stored = load_file(path)
        if len(stored["known"]) > len(self.train):
            self._all_views()
        if stored["known"].shape != self._known.shape:
            raise ValueError(f"{path.name} holds outputs of {len(stored['known'])} samples, not of this data")
        self._known, self._outputs = stored["known"], stored["outputs"]
        self._kept = int(self._known.sum())

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """(inputs, targets, teacher's outputs) for [batch] indices.

        Args:
            epoch: the data is seen as it is without one, else each sample in another view than in the epoch before.
                All views are in every batch: where they take turns, a training ends on one of them.
        """
        if self.teacher is None:
            inputs = tuple(augment(t[indices], self._kind, self._generator) for t in self.train.inputs)
            return inputs, self.train.targets[indices], None
        if epoch is None:
            inputs = tuple(t[indices] for t in self.train.inputs)
            return inputs, self.train.targets[indices], self._soft(self.teacher, indices, inputs)
        views = self._all_views()
        view = (indices + epoch) % views.count
        inputs, targets = views.take(view, indices)
        return inputs, targets, self._soft(self.teacher, indices + view * len(self.train), inputs)

    def ask(self, samples: Iterable[Tensor], until: float) -> None:
        """Have the teacher answer to samples as they are, ahead of the trainings.

        Args:
            samples: [batch] indices each.
            until: monotonic seconds after which it is not asked any more.
        """
        for indices in samples:
            if self.teacher is None or time.monotonic() > until:
                return
            self.batch(indices)

    def doubts(self) -> Tensor | None:
        """How unsure the teacher is of each sample: what is left of its largest probability, [n]; nan if it was not
        asked. None where it does not name one class."""
        targets = self.train.targets
        classes = not targets.is_floating_point() and targets.dtype != torch.bool
        if self._outputs is None or not classes:
            return None
        parts = torch.split(self._outputs[: len(self.train)], _AT_ONCE)
        doubts = torch.cat([1 - part.softmax(1).amax(1) for part in parts])
        return doubts.where(self._known[: len(self.train)], torch.nan)

    @property
    def varies(self) -> bool:
        """Whether there may be views: what the teacher says of all of them must not take too much memory."""
        return self._outputs is not None and self._outputs[0].nbytes * VIEWS * len(self.train) <= _MOST_BYTES

    def _all_views(self) -> Views:
        """The views, and room for what the teacher says of them; most studies never ask for any."""
        if self._views is None:
            self._views = Views(self.train, self._kind, self._generator)
            more = (self._views.count - 1) * len(self.train)
            self._known = torch.cat([self._known, torch.zeros(more, dtype=torch.bool)])
            if self._outputs is not None:
                self._outputs = torch.cat([self._outputs, torch.zeros(more, *self._outputs.shape[1:])])
        return self._views

    @torch.no_grad()
    def _soft(self, teacher: nn.Module, indices: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        missing = ~self._known[indices]
        if missing.any():
            unknown = tuple(t[missing] for t in inputs)
            fresh = self.answers(unknown) if self.answers else forward(teacher, unknown, self._trainer)
            fresh = fresh.float().cpu()
            if self._outputs is None:
                self._outputs = torch.zeros(len(self._known), *fresh.shape[1:])
            self._outputs[indices[missing]] = fresh
            self._known[indices[missing]] = True
        assert self._outputs is not None
        return self._outputs[indices]
