"""Whether this machine and a workspace can be used: versions, processor, timing noise, database mode.

It looks and says; it repairs nothing and leaves nothing behind.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autocompress.errors import UsageError
from autocompress.measure.machine import cores, processor
from autocompress.measure.saturation import INEXACT, saturates
from autocompress.study.database import Database, file_system

_NEEDED = ("torch", "torch-pruning", "onnx", "onnxruntime", "optuna", "sqlalchemy", "pydantic", "plotly")
_RUNTIMES = ("onnxruntime", "openvino")
_NOISY = 0.2  # p95 this share above p50


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: what, whether it will do, and what was found."""

    check: str
    ok: bool
    found: str


def examine(workspace: Path) -> list[Check]:
    """Everything there is to check, the workspace last; it need not exist."""
    return [*_versions(), *_machine(), *_workspace(workspace)]


def devices() -> list[dict[str, str | int]]:
    """The devices on which latency can be measured, one entry per runtime that is installed."""
    found = {runtime: _version(runtime) for runtime in _RUNTIMES}
    return [
        {"name": "local", "runtime": runtime, "version": version, "processor": processor(), "cores": cores()}
        for runtime, version in found.items()
        if version
    ]


def _versions() -> list[Check]:
    found = {name: _version(name) for name in _NEEDED}
    python = Check(check="python", ok=True, found=sys.version.split()[0])
    libraries = (Check(check=n, ok=v is not None, found=v or f"missing; `pip install {n}`") for n, v in found.items())
    return [python, *libraries]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _machine() -> list[Check]:
    blocks = sorted(_block_s() for _ in range(200))
    spread = blocks[189] / blocks[100] - 1
    advice = "" if spread < _NOISY else "; other programs are using the processor, latency intervals will be wide"
    return [
        Check(check="processor", ok=True, found=f"{processor()}, {cores()} cores"),
        *_products(),
        Check(check="timing noise", ok=True, found=f"p95 is {spread:.0%} above p50{advice}"),
    ]


def _products() -> list[Check]:
    """How the runtime adds 8-bit products here; nothing where it is missing, which is found out elsewhere."""
    if not (_version("onnx") and _version("onnxruntime")):
        return []
    return [Check(check="8-bit products", ok=True, found=INEXACT if saturates() else "added exactly")]


def _block_s() -> float:
    start = time.perf_counter()
    sum(range(20_000))
    return time.perf_counter() - start


def _workspace(workspace: Path) -> list[Check]:
    """Tries the database mode in a folder of its own, so that nothing is left behind."""
    existing = next(folder for folder in (workspace.absolute(), *workspace.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".autocompress-doctor-") as folder:
            Database(Path(folder)).close()
        problem = ""
    except (OSError, UsageError) as error:
        problem = f"{error}; choose another folder with --workspace"
    kind = file_system(existing)
    return [
        Check(check="workspace", ok=not problem, found=problem or f"{workspace} can be written"),
        Check(check="sqlite", ok=not problem and kind is None, found=f"{sqlite3.sqlite_version}, {kind or 'WAL'}"),
    ]
