"""What a device must be able to do, and the lock that keeps training and timing apart on it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from autocompress.records import DeviceFacts, Latency


class Device(Protocol):
    """Where latency is measured."""

    facts: DeviceFacts

    def measure(
        self,
        candidate: Path,
        baseline: Path,
        *,
        baseline_ms: float | None = None,
        seconds: float | None = None,
        stream: Path | None = None,
    ) -> Latency:
        """Time `candidate` interleaved with `baseline`.

        Args:
            baseline_ms: the baseline's latency on record; None makes this measurement the record.
            seconds: to measure for; None: what a first look takes.
            stream: an .npz file of samples, [n, ...] per input in the order of the graph: both are run on one after
                the other, and the mean counts. None: both are run on one fixed batch.
        Raises:
            DeviceError: the device cannot run the file.
        """

    def close(self) -> None:
        """Give the device back."""


@contextmanager
def device_lock(name: str, *, timing: bool) -> Iterator[None]:
    """Hold a device of this machine: alone while timing, together with other trainers while training.

    The lock is shared by all processes of a user. A trainer takes it for a second at a time, so a
    timing waits at most about that long: who waits for it closes the gate, and no trainer comes in
    again before it had its turn.
    """
    kind = fcntl.LOCK_EX if timing else fcntl.LOCK_SH
    with _lock_file(name, "lock") as lock:
        # Without the gate two trainers that take turns would keep the shared lock for ever.
        with _lock_file(name, "gate") as gate:
            fcntl.flock(gate, kind)
            fcntl.flock(lock, kind)
        yield


@contextmanager
def _lock_file(name: str, what: str) -> Iterator[TextIO]:
    """An open lock file; closing it gives its lock back."""
    with (Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}-{name}.{what}").open("a") as handle:
        yield handle
