"""What the driver may rely on of an executor, with a worker program that does what it is told and no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_study import alive, children, wait_for

from autocompress.errors import DeviceError, StageError, UsageError
from autocompress.study import executors
from autocompress.study.executors import LocalWorker, WorkerBug, WorkerDied

# Speaks the worker's protocol; every method is something that a real worker may do or suffer.
PROGRAM = """
import os, pickle, struct, subprocess, sys, time, signal
from autocompress.errors import DeviceError, StageError, UsageError
LENGTH = struct.Struct("<Q")
def send(message, out=sys.stdout.buffer):
    data = pickle.dumps(message)
    out.write(LENGTH.pack(len(data)) + data); out.flush()
while header := sys.stdin.buffer.read(LENGTH.size):
    method, arguments = pickle.loads(sys.stdin.buffer.read(LENGTH.unpack(header)[0]))
    if method == "echo":
        send(("progress", "one")); send(("progress", "two")); send(("done", arguments))
    elif method == "pid":
        send(("done", os.getpid()))
    elif method == "usage":
        send(("error", UsageError("no such thing; try another")))
    elif method == "stage":
        send(("error", StageError("export", ("prune", "emit"), "it broke")))
    elif method == "bug":
        send(("bug", "Traceback: KeyError: 'x'"))
    elif method == "kill":
        os.kill(os.getpid(), arguments[0])
    elif method == "exit":
        os._exit(arguments[0])
    elif method == "half":
        sys.stdout.buffer.write(LENGTH.pack(1000) + b"half"); sys.stdout.buffer.flush(); os._exit(1)
    elif method == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        send(("done", child.pid))
    elif method == "sleep":
        send(("progress", "asleep")); time.sleep(arguments[0]); send(("done", "awake"))
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    real = subprocess.Popen

    def start(command: list[str], **options):
        assert command[1:] == ["-m", "autocompress.study.worker"]
        return real([sys.executable, str(program)], **options)

    monkeypatch.setattr(executors.subprocess, "Popen", start)
    made = LocalWorker(on_progress=said.append, tick=lambda: None)
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + 30


def test_a_request_gives_its_result_after_its_progress(worker, said):
    assert worker.call("echo", 1, "two", deadline=soon()) == (1, "two")
    assert said == ["one", "two"]


def test_a_large_request_and_result_pass_whole(worker):
    data = os.urandom(5_000_000)
    assert worker.call("echo", data, deadline=soon()) == (data,)


@pytest.mark.parametrize(
    ("method", "kind", "text", "code"),
    [
        ("usage", UsageError, "no such thing; try another", 2),
        ("stage", StageError, "export failed after prune, emit: it broke", 1),
    ],
)
def test_an_error_of_the_request_passes_as_itself_and_the_worker_lives(worker, method, kind, text, code):
    pid = worker.call("pid", deadline=soon())
    with pytest.raises(kind) as caught:
        worker.call(method, deadline=soon())
    assert type(caught.value) is kind
    assert str(caught.value) == text
    assert caught.value.exit_code == code
    assert worker.call("pid", deadline=soon()) == pid


def test_our_bug_comes_with_its_traceback_and_the_worker_lives(worker):
    pid = worker.call("pid", deadline=soon())
    with pytest.raises(WorkerBug, match="KeyError: 'x'"):
        worker.call("bug", deadline=soon())
    assert worker.call("pid", deadline=soon()) == pid


@pytest.mark.parametrize(
    ("method", "argument", "text"),
    [
        ("kill", signal.SIGKILL, "its process was ended by SIGKILL; the machine may be out of memory"),
        ("kill", signal.SIGSEGV, "its process was ended by SIGSEGV"),
        ("exit", 3, "its process ended with code 3"),
        ("half", 0, "its process ended with code 1"),
    ],
)
def test_a_crash_says_how_it_ended_and_the_next_request_starts_another(worker, method, argument, text):
    before = worker.call("pid", deadline=soon())
    with pytest.raises(WorkerDied) as caught:
        worker.call(method, argument, deadline=soon())
    assert str(caught.value) == text
    assert not worker.alive
    assert worker.call("pid", deadline=soon()) != before
    assert worker.alive


def test_a_worker_killed_between_two_requests_is_replaced(worker):
    pid = worker.call("pid", deadline=soon())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not worker.alive, seconds=5, what="the end of the worker")
    assert worker.call("pid", deadline=soon()) != pid


def test_a_request_past_its_deadline_ends_the_worker(worker):
    pid = worker.call("pid", deadline=soon())
    start = time.monotonic()
    with pytest.raises(WorkerDied, match="it took longer than its time and was ended"):
        worker.call("sleep", 30, deadline=start + 0.5)
    assert time.monotonic() - start < 3
    assert not alive(pid)


def test_what_the_tick_raises_ends_the_wait_and_the_worker(worker, said):
    class Enough(Exception):
        pass

    pid = worker.call("pid", deadline=soon())

    def tick() -> None:
        if "asleep" in said:
            raise Enough

    worker._tick = tick
    with pytest.raises(Enough):
        worker.call("sleep", 30, deadline=soon())
    assert not alive(pid)


def test_close_leaves_neither_the_worker_nor_what_it_started(worker):
    pid, child = worker.call("pid", deadline=soon()), worker.call("child", deadline=soon())
    assert alive(child)
    worker.close()
    assert not alive(pid)
    wait_for(lambda: not alive(child), seconds=5, what="the end of the worker's child")
    worker.close()  # twice is once
    assert not worker.alive


def test_the_child_of_a_crashed_worker_ends_with_it(worker):
    child = worker.call("child", deadline=soon())
    start = time.monotonic()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        worker.call("kill", signal.SIGKILL, deadline=soon())
    assert time.monotonic() - start < 10, "the child holds the pipe open, and is not waited for"
    wait_for(lambda: not alive(child), seconds=5, what="the end of the worker's child")


def test_a_ctrl_c_reaches_the_driver_alone(worker):
    """Of a terminal's Ctrl-C every process of the foreground group gets one: the worker must not be in it."""
    pid = worker.call("pid", deadline=soon())
    assert os.getpgid(pid) == pid != os.getpgid(0)
    assert os.getsid(pid) == pid


def test_frames_may_arrive_in_any_pieces():
    import pickle
    import struct

    messages = [("progress", "a"), ("done", list(range(1000)))]
    stream = b"".join(struct.pack("<Q", len(d)) + d for d in map(pickle.dumps, messages))
    for size in (1, 3, 7, 8, 9, 4096, len(stream)):
        buffer, got = bytearray(), []
        for start in range(0, len(stream), size):
            buffer += stream[start : start + size]
            got += executors._messages(buffer)
        assert got == messages
        assert not buffer


def test_a_real_worker_dies_with_its_driver(tmp_path: Path):
    """The driver is killed -9: nobody closes anything, and the worker must notice by itself."""
    code = (
        "import time, autocompress.study.executors as e\n"
        "w = e.LocalWorker(on_progress=print, tick=lambda: None)\n"
        "print(w._started().pid, flush=True); time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    assert pid in children(driver.pid)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_for(lambda: not alive(pid), seconds=30, what="the end of the worker")


def test_device_errors_keep_their_exit_code_through_a_pickle():
    import pickle

    assert pickle.loads(pickle.dumps(DeviceError("it refused"))).exit_code == 5
