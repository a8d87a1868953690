"""The process that trains: reads requests on stdin, answers on stdout, and dies with its driver.

A trial that crashes the interpreter, runs out of memory or hangs takes this process with it and
nothing else. Requests and answers are pickles between two processes of the same program.
"""

from __future__ import annotations

import errno
import os
import pickle
import struct
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

from autocompress.errors import AutocompressError, UsageError
from autocompress.study.cascade import make_cascade
from autocompress.study.evaluate import evaluate, examine, probe
from autocompress.study.prepare import prepare
from autocompress.study.progress import Report
from autocompress.study.requests import Request
from autocompress.study.task import Task

_LENGTH = struct.Struct("<Q")


def write_message(stream: BinaryIO, message: Any) -> None:
    """Length and pickle of a message."""
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    _die_with(os.getppid())
    task: Task | None = None
    while header := sys.stdin.buffer.read(_LENGTH.size):
        method, arguments = pickle.loads(sys.stdin.buffer.read(_LENGTH.unpack(header)[0]))

        def report(text: str) -> None:
            _answer(answers, ("progress", text))

        try:
            if method == "prepare":
                source, known = arguments
                task, result = prepare(source, known, report)
            else:
                assert task is not None, "a worker is asked to prepare first"
                result = _serve(task, method, arguments, report)
            _answer(answers, ("done", result))
        except AutocompressError as error:
            _answer(answers, ("error", error))
        except Exception as error:
            full = _disk_full(error)
            _answer(answers, ("error", full) if full else ("bug", traceback.format_exc()))


def _answer(answers: BinaryIO, message: Any) -> None:
    """Nobody is told that the driver is gone: whoever killed it knows."""
    try:
        write_message(answers, message)
    except BrokenPipeError:
        os._exit(1)


def _serve(task: Task, method: str, arguments: tuple[Any, ...], report: Report) -> Any:
    if method == "evaluate":
        request: Request = arguments[0]
        record = evaluate(task, request, report)
        task.keep_outputs()
        return record
    if method == "cascade":
        return make_cascade(task, arguments[0], report)
    if method == "probe":
        return probe(task, arguments[0])
    artifact, baseline_ms, timed = arguments
    workspace = task.source.workspace
    dense = workspace / task.baseline.artifact
    return examine(task, workspace / artifact, dense, baseline_ms=baseline_ms, timed=timed)


def _disk_full(error: Exception) -> UsageError | None:
    text = os.strerror(errno.ENOSPC)
    if getattr(error, "errno", None) != errno.ENOSPC and text not in str(error):  # libraries have errors of their own
        return None
    return UsageError(f"the artifacts cannot be written ({text}); free some disk space, then start or resume the study")


def _die_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
