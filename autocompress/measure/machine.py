"""What this machine is: its processor, its cores and its memory. Only the standard library."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def processor() -> str:
    """Name of the processor's model; its architecture where the name is not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Bytes of memory this process may use: the machine's, or less in a container; None where that is not told."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # a container without a limit says "max"
            found.append(int(limit.read_text()))
    return min(found, default=None)
