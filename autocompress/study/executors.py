"""Where a trial runs. Today that is one worker process on this machine, restarted when it dies.

Only the driver writes the study; an executor takes requests and gives back plain records.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct("<Q")
_POLL_S = 0.2
# A step's activations stay with the allocator instead of going back to the system every time: 10 % of a step.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "268435456"}


class WorkerDied(Exception):
    """The worker ended or was ended in the middle of a request; the text says how."""


class WorkerBug(Exception):
    """Our own code raised in the worker; the text is its traceback."""


def own_environment() -> dict[str, str]:
    """What a process of ours is started with: our import path, and the current folder behind it.

    By itself, Python would put that folder first, and a `queue.py` in it in the place of the standard library's.
    """
    path = [*(folder for folder in sys.path if folder), os.curdir]
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}


class LocalWorker:
    """One worker process in a session of its own, so that a Ctrl-C reaches the driver alone.

    Args:
        on_progress: told in words what the worker is doing.
        tick: called a few times a second while waiting; what it raises ends the wait and the worker.
    """

    def __init__(self, *, on_progress: Callable[[str], None], tick: Callable[[], None]) -> None:
        self._on_progress, self._tick = on_progress, tick
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process is there and has not ended."""
        return self._process is not None and self._process.poll() is None

    def call(self, method: str, *arguments: Any, deadline: float) -> Any:
        """Send a request and wait for its result.

        Args:
            deadline: monotonic seconds after which the worker is killed.
        Raises:
            AutocompressError: raised by the request itself.
            WorkerBug: the worker's own code is wrong.
            WorkerDied: it crashed, or the deadline passed.
        """
        process = self._started()
        assert process.stdin is not None
        data = pickle.dumps((method, arguments))
        with contextlib.suppress(BrokenPipeError):  # the reader below finds out and says how it ended
            process.stdin.write(_LENGTH.pack(len(data)) + data)
            process.stdin.flush()
        try:
            return self._wait(process, deadline)
        except BaseException as error:
            if not _from_the_worker(error):
                self.close()  # it is in the middle of something nobody waits for any more
            raise

    def close(self) -> None:
        """Kill the process and whatever it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process = None

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> Any:
        buffer = bytearray()
        with selectors.DefaultSelector() as selector:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                self._tick()
                if time.monotonic() > deadline:
                    raise WorkerDied("it took longer than its time and was ended")
                if not selector.select(_POLL_S):
                    # What it started may keep its end of the pipe open for long after it.
                    if process.poll() is not None and not selector.select(0):
                        raise WorkerDied(_how_it_ended(process.returncode))
                    continue
                chunk = os.read(process.stdout.fileno(), 1 << 20)
                if not chunk:
                    raise WorkerDied(_how_it_ended(process.wait()))
                buffer += chunk
                for kind, value in _messages(buffer):
                    if kind == "progress":
                        self._on_progress(value)
                    elif kind == "error":
                        raise value
                    elif kind == "bug":
                        raise WorkerBug(value)
                    else:
                        return value

    def _started(self) -> subprocess.Popen[bytes]:
        if not self.alive:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autocompress.study.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env={**_MALLOC, **own_environment()},
            )
        assert self._process is not None
        return self._process


def _messages(buffer: bytearray) -> list[tuple[str, Any]]:
    """Take the whole messages off the front of the buffer."""
    found = []
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        end = _LENGTH.size + length
        if len(buffer) < end:
            break
        found.append(pickle.loads(bytes(buffer[_LENGTH.size : end])))
        del buffer[:end]
    return found


def _from_the_worker(error: BaseException) -> bool:
    from autocompress.errors import AutocompressError

    return isinstance(error, AutocompressError | WorkerBug)


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"
