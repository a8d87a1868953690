"""What `autocompress serve` was started with: addresses, and the limits that keep the service up."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import UsageError
from autocompress.measure.machine import memory_bytes

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One server.

    Attributes:
        allowed_hosts: names by which clients may call this server; loopback names always count.
        allow_code: whether what a client sends may name code of this machine: factories and metrics of one's own.
        parallel: searches side by side, each on another device.
        max_body_bytes: of a request that is no upload.
        min_free_bytes: free disk space below which nothing new is started or stored.
        max_budget_s: of one search.
        max_memory_bytes: of one search with all its processes; None: no limit.
        max_exports: bundles that are kept; the oldest go first.
        max_streams: clients of the event stream at one time.
    """

    workspace: Path
    host: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: tuple[str, ...] = ()
    allow_code: bool = False
    parallel: int = 1
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 512 << 20
    max_models: int = 100
    max_queue: int = 100
    min_free_bytes: int = 500_000_000
    max_budget_s: float = 7 * 86400.0
    max_memory_bytes: int | None = None
    max_exports: int = 50
    max_streams: int = 200

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.allowed_hosts:
            raise UsageError(
                f"binding to {self.host} lets other machines in; name what they call this server, for example"
                " --allowed-host gpu-box.lan, or keep the default 127.0.0.1 and use an SSH tunnel"
            )
        for name in self.allowed_hosts:
            if not name or "*" in name or "/" in name:
                raise UsageError(f"--allowed-host takes a plain host name such as gpu-box.lan, got {name!r}")

    @property
    def hosts(self) -> frozenset[str]:
        """Every name that may stand in a Host header, in lower case."""
        return frozenset(name.lower().strip("[]") for name in (*LOOPBACK_NAMES, *self.allowed_hosts))

    @property
    def url(self) -> str:
        """Where a browser of this machine finds the server."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def default_parallel() -> int:
    """One: there is one device, on which one search runs at a time, and it shall have the memory of all."""
    return 1


def default_memory_bytes(parallel: int) -> int | None:
    """Four fifths of the memory, divided among the searches that run side by side; the rest is the system's."""
    total = memory_bytes()
    return None if total is None else int(0.8 * total) // parallel
