"""The order in which trainings see the samples, and which of them they leave out.

Of most samples a trained teacher is sure, and a network that was cut from it still is: they teach it little. So a
training that sees the data a few times takes the others first and foremost. One that sees it often needs all of it.

Source: uncertainty sampling, Lewis and Gale 1994, arXiv:cmp-lg/9407020, with the teacher's uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from autocompress.recover.data import batches
from autocompress.recover.outputs import TeacherOutputs

_LEAST_TAKEN = 0.3  # of the samples
_MOST_SEEN = 6.0  # times by a network, earlier trainings counted, if anything is left out
_SURE = 0.02  # of those without any doubt
_AGREES = 0.12  # disagreement with the teacher, below which a network gains more from what the teacher is unsure of
_NEW = 0.2  # weight of the last batch in the mean of the disagreement
_HALVINGS = 60


class Order:
    """Batches of samples, the same for all trainings of a seed as long as all samples are taken.

    Attributes:
        epoch: of the last batch, earlier trainings counted.
        undecided: whether samples may be left out yet, so that `consider` is to be told of the network.

    Args:
        batch_size: at least 1; fewer samples than that are one batch.
        seen: samples that the network was trained on before; it goes on where that training ended.
    """

    def __init__(self, source: TeacherOutputs, batch_size: int, *, seed: int, seen: int) -> None:
        self._source, self._size = source, min(batch_size, len(source.train))
        self._per_epoch, skipped = len(source.train) // self._size, seen // self._size
        self._before = skipped / self._per_epoch
        generator = torch.Generator().manual_seed(seed)
        self._batches = islice(enumerate(batches(source.train, batch_size, generator)), skipped, None)
        self._dice = torch.Generator().manual_seed(seed + skipped)
        self._waiting = torch.zeros(0, dtype=torch.long)
        self.epoch = skipped // self._per_epoch
        self._chances: Tensor | None = None
        self._disagreement = 2 * _AGREES  # until some batches have shown that it is less
        self.undecided = True

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """Indices [batch]."""
        while len(self._waiting) < self._size:
            count, indices = next(self._batches)
            self.epoch = count // self._per_epoch
            if self._chances is not None:
                indices = indices[torch.rand(len(indices), generator=self._dice) < self._chances[indices]]
            self._waiting = torch.cat([self._waiting, indices])
        batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        return batch

    def first_epoch(self) -> Iterator[Tensor]:
        """The batches of an epoch."""
        return islice(self, self._per_epoch)

    def consider(self, disagreement: float, epochs: float) -> None:
        """From now on leave out samples that the teacher is sure of, if the network mostly says what its teacher says.

        One that was just cut has to learn from all of them. Three tenths are left for a network that could see all
        samples up to about twice, all for one that could see them six times. Where it is not known what the teacher
        says of a sample, that is taken.

        Args:
            disagreement: on the last batch, `rate.disagreement`.
            epochs: how many the training would have.
        """
        share = max(_LEAST_TAKEN, (self._before + epochs) / _MOST_SEEN)
        self._disagreement += _NEW * (disagreement - self._disagreement)
        self.undecided = share < 1 and self._disagreement >= _AGREES
        if not self.undecided and share < 1 and (doubts := self._source.doubts()) is not None:
            self._chances = chances(doubts, share)


def chances(doubts: Tensor, share: float) -> Tensor:
    """With what chance each sample is taken, so that it rises with its doubt and has the mean `share`.

    Args:
        doubts: [n], from 0 to 1; nan for those to be taken in any case, which do not count for the mean.
    """
    known = doubts[~doubts.isnan()]
    low, high = -30.0, 30.0  # logarithm of the factor of the doubts
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _chances(known, middle).mean() < share:
            low = middle
        else:
            high = middle
    return _chances(doubts, low).nan_to_num(1.0)


def _chances(doubts: Tensor, log_factor: float) -> Tensor:
    return (_SURE + doubts * math.exp(log_factor)).clamp(max=1.0)
