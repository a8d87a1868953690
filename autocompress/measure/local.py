"""This machine as the device: latency is timed by a child process that lives as long as the device object."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from autocompress.config import DeviceConfig
from autocompress.errors import DeviceError
from autocompress.measure.device import device_lock
from autocompress.measure.machine import cores, processor
from autocompress.measure.runtime import check_runtime
from autocompress.records import DeviceFacts, Latency

_LONG_S = 2.0  # the baseline's own latency is measured once, and longer


class LocalDevice:
    """The machine that runs the search.

    Args:
        config: runtime, threads and batch.
    Raises:
        DeviceError: the runtime is not installed, or more threads are asked for than there are cores.
    """

    def __init__(self, config: DeviceConfig) -> None:
        check_runtime(config.runtime)
        if config.threads > cores():
            raise DeviceError(f"device.threads is {config.threads}, but {cores()} cores are there; set it lower")
        self.facts = DeviceFacts(
            name=config.name,
            runtime=config.runtime,
            threads=config.threads,
            batch=config.batch,
            description=f"{processor()}, {cores()} cores, {platform.system()}",
        )
        self._child: subprocess.Popen[str] | None = None

    def measure(
        self,
        candidate: Path,
        baseline: Path,
        *,
        baseline_ms: float | None = None,
        seconds: float | None = None,
        stream: Path | None = None,
    ) -> Latency:
        """See `Device.measure`."""
        request: dict[str, Any] = {
            "baseline": str(baseline),
            "candidate": str(candidate),
            "runtime": self.facts.runtime,
            "threads": self.facts.threads,
            "batch": self.facts.batch,
        }
        if seconds or baseline_ms is None:
            request["seconds"] = seconds or _LONG_S
        if stream is not None:
            request["stream"] = str(stream)
        with device_lock(self.facts.name, timing=True):
            answer = self._ask(request)
        if "error" in answer:
            raise DeviceError(f"the device {self.facts.name!r} cannot time {candidate.name}: {answer['error']}")
        ratio = answer["ratio"]
        return Latency(
            latency_ms=ratio * (answer["baseline_ms"] if baseline_ms is None else baseline_ms),
            ratio=ratio,
            ratio_ci=(answer["ratio_ci"][0], answer["ratio_ci"][1]),
            blocks=answer["blocks"],
            contended=answer["contended"],
        )

    def close(self) -> None:
        """End the timing process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # a request that nobody reads any more
                        stream.close()
            self._child = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()  # the next measurement starts a fresh one
            return {"error": "the timing process died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is not None:
            self.close()  # it died since the last measurement
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "autocompress.measure.latency"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self.facts.threads)},
            )
        return self._child
