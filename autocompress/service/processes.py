"""Processes of this machine: which one a number means, whether it lives, and how it ends with all that it started.

And how much memory they hold together.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number.

    Attributes:
        started: clock ticks after boot at which it began; 0 where the system does not tell.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _started(pid) or 0)

    @property
    def alive(self) -> bool:
        """Whether it is there and no zombie."""
        if self.started:
            return _started(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except (OSError, OverflowError):
            return False
        return True

    def end(self, number: signal.Signals) -> None:
        """Send a signal to its process group; with SIGKILL also to all that it started, in whatever group."""
        if not self.alive:
            return
        family = descendants(self.pid) if number is signal.SIGKILL else []
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
        for child in family:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, number)


def descendants(pid: int) -> list[int]:
    """Living processes that a process started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (fields := _stat(int(entry.name))) and fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def memory_bytes(pid: int) -> int:
    """Memory that a process and all that it started hold; 0 where the system does not tell.

    Files that are mapped, libraries above all, are left out: processes share them, and the system can drop them.
    """
    return sum(map(_held_bytes, (pid, *descendants(pid))))


def _held_bytes(pid: int) -> int:
    try:
        lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: what stands before may hold blanks."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
