"""Who may write a study: a lock file that its owner holds, and that the system frees when the owner ends.

Says nothing about what is written. Locks are taken by whole processes, not by threads.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such lock: there, every owner is taken to be alive
    fcntl = None  # type: ignore[assignment]

# POSIX locks belong to the process and end when *any* descriptor of the file is closed, so each
# process remembers which lock files it holds: (pid, path) -> descriptor. The pid tells a fork's copy apart.
_held: dict[tuple[int, Path], int] = {}


def take(path: Path) -> int | str | None:
    """Make this process the holder of a lock file until `release` or its end; nothing happens if it is already.

    Returns:
        None when this process holds it now, else the pid of the process that does, or "unknown".
    Raises:
        OSError: the file cannot be made or written.
    """
    if is_mine(path):
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _acquire(descriptor):
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            return int(holder) if holder.isdigit() else "unknown"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    _held[(os.getpid(), path)] = descriptor
    return None


def release(path: Path) -> None:
    """Give a lock file back; nothing happens if this process does not hold it."""
    # The file stays: removing it would let two processes lock two files of the same name.
    if is_mine(path):
        os.close(_held.pop((os.getpid(), path)))


def is_mine(path: Path) -> bool:
    """Whether this process holds the lock file."""
    return (os.getpid(), path) in _held


def is_held(path: Path) -> bool:
    """Whether a living process, this one or another, holds the lock file."""
    if is_mine(path) or fcntl is None:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(descriptor: int) -> bool:
    if fcntl is None:
        return True
    # A reader that looks whether the owner lives (`is_held`) holds the lock for an instant: try again.
    for pause_s in (0.02, 0.1, 0.3, 0.0):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            time.sleep(pause_s)
    return False
