"""Lock files between real processes: one holder, named to the others, freed by its death."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autocompress.study import lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from autocompress.study import lock
print(lock.take(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""
LOOK = (
    "import sys; from pathlib import Path; from autocompress.study import lock; print(lock.is_held(Path(sys.argv[1])))"
)


@pytest.fixture
def path(tmp_path):
    yield tmp_path / ".lock-digits"
    lock.release(tmp_path / ".lock-digits")


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has asked for the lock and still runs; its answer is its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def seen_as_held(path: Path) -> bool:
    done = subprocess.run([sys.executable, "-c", LOOK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_a_lock_is_ours_until_it_is_released(path):
    assert (lock.is_mine(path), lock.is_held(path)) == (False, False)
    assert lock.take(path) is None
    assert lock.take(path) is None, "taking it twice is taking it"
    assert (lock.is_mine(path), lock.is_held(path), seen_as_held(path)) == (True, True, True)
    lock.release(path)
    lock.release(path)
    assert (lock.is_mine(path), lock.is_held(path), seen_as_held(path)) == (False, False, False)
    assert path.exists(), "another process may be about to lock this very file"


def test_the_holder_is_named_and_its_death_frees_the_lock(path):
    with holder(path) as other:
        assert answer(other) == "None"
        assert lock.take(path) == other.pid
        assert (lock.is_mine(path), lock.is_held(path)) == (False, True)
    assert not lock.is_held(path)
    assert lock.take(path) is None
    assert path.read_text() == f"{os.getpid()}\n"


def test_looking_at_our_own_lock_does_not_end_it(path):
    assert lock.take(path) is None
    for _ in range(3):
        assert lock.is_held(path)
    with holder(path) as other:
        assert answer(other) == str(os.getpid())


def test_a_folder_that_is_not_there_cannot_hold_a_lock(tmp_path):
    path = tmp_path / "nowhere" / ".lock-digits"
    assert not lock.is_held(path)
    with pytest.raises(FileNotFoundError):
        lock.take(path)
