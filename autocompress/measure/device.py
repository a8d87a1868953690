"""What a device must be able to do, and the lock that keeps training and timing apart on it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from autocompress.records import DeviceFacts, Latency


class Device(Protocol):
    """Where latency is measured."""

    facts: DeviceFacts

    def measure(self, candidate: Path, baseline: Path, *, baseline_ms: float | None = None) -> Latency:
        """Time `candidate` interleaved with `baseline`.

        Args:
            baseline_ms: the baseline's latency on record; None makes this measurement the record.
        Raises:
            DeviceError: the device cannot run the file.
        """

    def close(self) -> None:
        """Give the device back."""


@contextmanager
def device_lock(name: str, *, timing: bool) -> Iterator[None]:
    """Hold a device of this machine: alone while timing, together with other trainers while training.

    The lock is shared by all processes of a user. A trainer takes it for a second at a time, so a
    timing waits at most about that long.
    """
    path = Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}-{name}.lock"
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if timing else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
