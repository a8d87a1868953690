"""A whole study on the tiny network and data: its settings, a trained teacher, a study file, and the command line."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import TinyNet, make_tiny_data
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
NAME = "tiny"
SPACE = {"round_to": 2, "weight_bits": [4, 8, 32], "learning_rate": [0.01]}
SEARCH = {"train_s": 0.4, "batch_size": 32, "final_share": 0.25}


@functools.cache
def budget_s() -> float:
    """Enough for a dozen trials.

    What a study needs before its first trial is mostly imports; a machine that others use is given its time.
    """
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import autocompress.study.worker"], env=environment(), check=True)
    return min(90.0, max(24.0, 10 * (time.monotonic() - start)))


@functools.cache
def _trained() -> dict[str, torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is slower on several, and stands still on a busy machine
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyNet(channels=16)
        inputs, targets = make_tiny_data()["train"]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(12):
            for rows in torch.randperm(len(inputs)).split(32):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
    torch.set_num_threads(threads)
    return model.state_dict()


def trained_model() -> TinyNet:
    """A fresh copy of the same teacher, trained once per session of tests."""
    model = TinyNet(channels=16)
    model.load_state_dict(_trained())
    return model.eval()


def write_study(folder: Path, **changes: dict[str, Any]) -> Path:
    """`tiny.toml` and its weights; `changes` are tables that replace or add keys, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in _trained().items()}, folder / "teacher.safetensors")
    tables: dict[str, dict[str, Any]] = {
        "model": {"factory": "tiny:TinyNet", "args": {"channels": 16}, "weights": "teacher.safetensors"},
        "data": {"factory": "tiny:make_tiny_data"},
        "space": dict(SPACE),
        "search": {"budget": f"{budget_s():.1f}s", **SEARCH},
    }
    for table, values in changes.items():
        tables[table] = {k: v for k, v in {**tables.get(table, {}), **values}.items() if v is not None}
    path = folder / f"{NAME}.toml"
    lines = [line for table, values in tables.items() for line in (f"[{table}]", *map(_line, values, values.values()))]
    path.write_text("\n".join(lines) + "\n")
    return path


def _line(key: str, value: Any) -> str:
    from autocompress.study_file import toml_value

    return f"{key} = {toml_value(value)}"


def environment() -> dict[str, str]:
    """Of a process that can import the package, and the tiny network as a user's module."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AUTOCOMPRESS_")}
    return {**clean, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "autocompress", *map(str, arguments)]


def run_command(*arguments: object, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `autocompress` in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def start_command(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """The same in the background, in a process group of its own; stderr goes to `stderr.txt` in `cwd`."""
    with (cwd / "stderr.txt").open("a") as log:
        return subprocess.Popen(
            command(*arguments),
            cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=log, text=True, start_new_session=True,
            # a test run started in the background ignores Ctrl-C, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def wait_for(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """What `condition` gives once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds:.0f} s")


def processes_with(word: str) -> Iterator[int]:
    """Pids whose command line or working directory names `word`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
                where = os.readlink(entry / "cwd")
            except OSError:  # it ended, or is somebody else's
                continue
            if text and (word in text or word in where):
                yield int(entry.name)


def children(pid: int) -> list[int]:
    """Pids of the living descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        for child in parents.get(pending.pop(), []):
            found.append(child)
            pending.append(child)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
