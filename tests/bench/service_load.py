"""What clients cost a running search: trials completed with and without load, both ways, and every answer.

    python tests/bench/service_load.py --budget 60s --pairs 2 --out service_load.json

Starts a server, and runs the same search in pairs, once alone and once with clients: 50 event streams and 100
mixed reads a second for as long as it searches. In every second pair the loaded search goes first. Prints the ratio of
trials loaded / alone and alone / loaded per pair and over all, the answers that failed, and the time they took.

Trials per run differ by a few of their own, so one pair says little: give it several. Server and search share the
cores that this process may use; the clients use them too unless --client-core names another one. The regime is
a part of the result: it is printed and stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

READS = ("/studies", "/studies/{id}", "/studies/{id}/front", "/studies/{id}/trials?limit=50", "/studies/{id}/table",
         "/studies/{id}/figures/accuracy_size", "/health", "/metrics", "/devices")  # fmt: skip
BUSY = ("queued", "running", "finalising")


@dataclass
class Load:
    """What the clients saw."""

    answers: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    events: int = 0
    not_changed: int = 0
    late_s: float = 0.0


class Server:
    """A server in a process of its own."""

    def __init__(self, workspace: Path, *, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "autocompress",
            "serve",
            "--workspace",
            str(workspace),
            "--port",
            str(self.port),
        ]
        self.log = log.open("wb")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        match = re.search(r"token=(\S+)", self.process.stdout.readline())
        assert match is not None, "the server did not start"
        self.token = match[1]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def wait_until_ready(self) -> None:
        """Return when it answers."""
        for _ in range(600):
            try:
                self.call("GET", "/health")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError("the server does not answer")

    def cpu_s(self) -> float:
        """Processor seconds that the server itself has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ask it to end."""
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


class Reader:
    """A client that keeps its connection, as browsers do, and asks again only for what changed."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token
        self._etags: dict[str, str] = {}
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        async with self._turn:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            try:
                return await self._ask(reader, writer, path)
            except BaseException:
                writer.close()
                self._streams = None
                raise

    async def close(self) -> None:
        """Give the connection back."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> tuple[int, bytes]:
        known = f"If-None-Match: {self._etags[path]}\r\n" if path in self._etags else ""
        head = f"GET /api/v1{path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{known}"
        writer.write(f"{head}Authorization: Bearer {self._token}\r\n\r\n".encode())
        headers = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(headers.split(" ", 2)[1])
        if match := re.search(r"etag: (\S+)", headers):
            self._etags[path] = match[1]
        length = re.search(r"content-length: (\d+)", headers)
        return status, await reader.readexactly(int(length[1])) if length and status != 304 else b""


async def read_once(reader: Reader, path: str, load: Load) -> None:
    """One read, counted."""
    start = time.perf_counter()
    try:
        status, body = await asyncio.wait_for(reader.get(path), 60)
    except (OSError, TimeoutError, ValueError, IndexError) as error:
        load.failed.append(f"{path}: {error!r}")
        return
    load.answers += 1
    load.not_changed += status == 304
    load.seconds.append(time.perf_counter() - start)
    if status not in (200, 304):
        load.failed.append(f"{path}: {status} {body[:100]!r}")


async def listen(port: int, token: str, path: str, load: Load, until: asyncio.Event) -> None:
    """One event stream, open until the search is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /api/v1{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
    writer.write(head.encode())
    over = asyncio.create_task(until.wait())
    while not until.is_set():
        line = asyncio.create_task(reader.readline())
        await asyncio.wait({line, over}, return_when=asyncio.FIRST_COMPLETED)
        if not line.done():
            line.cancel()
            break
        if not line.result():
            load.failed.append(f"{path}: the stream ended")
            break
        load.events += line.result().startswith(b"event: ")
    over.cancel()
    writer.close()


async def press(port: int, token: str, study: str, *, streams: int, rate: float, ended: Path) -> Load:
    """Streams and reads until a file appears."""
    load, until, dice = Load(), asyncio.Event(), random.Random(0)
    readers = [Reader(port, token) for _ in range(20)]
    addresses = ["/events" if n % 2 else f"/studies/{study}/events" for n in range(streams)]
    tasks = {asyncio.create_task(listen(port, token, address, load, until)) for address in addresses}
    begin, sent = time.perf_counter(), 0
    while not ended.exists():
        due = begin + sent / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        load.late_s = max(load.late_s, -wait)
        path = dice.choice(READS).replace("{id}", study)
        task = asyncio.create_task(read_once(dice.choice(readers), path, load))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        sent += 1
    until.set()
    await asyncio.wait(tasks, timeout=60)
    for reader in readers:
        await reader.close()
    return load


def run(server: Server, folder: Path, options: argparse.Namespace, *, name: str, loaded: bool) -> dict[str, Any]:
    """One search, alone or with clients: its trials, and what the clients saw."""
    ended = folder / f"{name}.ended"
    clients, results = None, folder / f"{name}.json"
    body = {"builtin": options.study, "name": name, "budget": options.budget, "seed": options.seed}
    body["set"] = dict(pair.split("=", 1) for pair in options.set)
    study = state = server.call("POST", "/studies", body)
    while state["state"] in BUSY and not state["trials"]["total"]:  # what comes before is mostly imports
        time.sleep(0.2)
        state = server.call("GET", f"/studies/{study['id']}")
    first = state["trials"]["total"]
    if loaded:
        command = [sys.executable, __file__, "--press", str(server.port), study["id"], str(ended), str(results)]
        command += ["--streams", str(options.streams), "--rate", str(options.rate)]
        if options.client_core is not None:
            command += ["--client-core", str(options.client_core)]
        clients = subprocess.Popen(command, env={**os.environ, "AUTOCOMPRESS_TOKEN": server.token})
    before, start = server.cpu_s(), time.monotonic()
    while state["state"] in BUSY:
        time.sleep(1.0)
        state = server.call("GET", f"/studies/{study['id']}")
    wall_s, cpu_s = time.monotonic() - start, server.cpu_s() - before
    ended.touch()
    entry = {
        "name": name,
        "loaded": loaded,
        "state": state["state"],
        "trials": state["trials"],
        "first": first,
        "wall_s": wall_s,
    }
    entry |= {"server_cpu_s": cpu_s, "spent_s": state["spent_s"], "error": state["error"]}
    if clients is not None:
        clients.wait(120)
        entry["load"] = json.loads(results.read_text())
    return entry


def summary(load: Load) -> dict[str, Any]:
    """The clients' figures."""
    ordered = sorted(load.seconds) or [math.nan]
    quantiles = {
        f"p{q}_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 1) for q in (50, 95, 99)
    }
    return {**asdict(load), **quantiles, "seconds": None, "mean_ms": round(1000 * statistics.fmean(ordered), 1)}


def main() -> int:
    """Run the pairs and print what they say; 1 if a request failed or the search lost more than its share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="digits", help="a built-in study")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--loaded-first", action="store_true", help="the loaded search goes first in the first pair")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=100.0, help="reads a second")
    parser.add_argument("--client-core", type=int, help="core of the clients, away from server and search")
    parser.add_argument("--server-core", type=int, help="core of what answers clients; searches keep the others")
    parser.add_argument("--allowed-loss", type=float, default=0.05)
    parser.add_argument("--workspace", type=Path, help="one to keep: its teacher need not be trained again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--press", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.press:
        return _press(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = Server(options.workspace or folder / "runs", log=folder / "server.log")
        try:
            server.wait_until_ready()
            if (
                options.server_core is not None
            ):  # of its first thread and those it starts; its scheduler has begun already
                os.sched_setaffinity(server.process.pid, {options.server_core})
            runs = []
            if not list(
                (options.workspace or folder / "runs").glob("artifacts/*")
            ):  # trains the teacher, which is kept
                runs.append(run(server, folder, options, name="warm-up", loaded=False))
            for pair in range(options.pairs):
                for loaded in (first := (pair % 2 == 1) != options.loaded_first, not first):
                    name = f"pair-{pair}-{'loaded' if loaded else 'alone'}-{int(time.time())}"
                    entry = run(server, folder, options, name=name, loaded=loaded)
                    runs.append(entry)
                    print(_line(entry), flush=True)
        finally:
            server.stop()
    measured = [entry for entry in runs if entry["name"] != "warm-up"]
    report = {"machine": _machine(options), "runs": runs, **_ratios(measured)}
    failed = [text for entry in runs for text in entry.get("load", {}).get("failed", [])]
    print(f"trials loaded / alone {report['loaded_to_alone']:.3f}, alone / loaded {report['alone_to_loaded']:.3f}")
    print(f"{len(failed)} failed requests{': ' + '; '.join(failed[:3]) if failed else ''}; {report['machine']}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(bool(failed) or report["loaded_to_alone"] < 1 - options.allowed_loss)


def _press(options: argparse.Namespace) -> int:
    port, study, ended, results = options.press
    if options.client_core is not None:
        os.sched_setaffinity(0, {options.client_core})
    token = os.environ["AUTOCOMPRESS_TOKEN"]
    load = asyncio.run(press(int(port), token, study, streams=options.streams, rate=options.rate, ended=Path(ended)))
    Path(results).write_text(json.dumps(summary(load)))
    return 0


def _ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    alone, loaded = (sum(e["trials"]["total"] - e["first"] for e in runs if e["loaded"] is of) for of in (False, True))
    return {"alone": alone, "loaded": loaded, "loaded_to_alone": loaded / alone if alone else math.nan,
            "alone_to_loaded": alone / loaded if loaded else math.nan}  # fmt: skip


def _line(entry: dict[str, Any]) -> str:
    trials, load = entry["trials"], entry.get("load")
    text = f"{entry['name']}: {trials['total']} trials ({trials['complete']} complete), {entry['state']}, "
    text += f"{entry['error']}, " if entry["error"] else ""
    text += f"{entry['wall_s']:.0f} s, the server used {entry['server_cpu_s']:.1f} s of a core"
    if load:
        text += f"; {load['answers']} answers, {load['not_changed']} of them 304 "
        text += f"(p50 {load['p50_ms']} ms, p99 {load['p99_ms']} ms), {load['events']} events"
    return text


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    names = ("autocompress", "fastapi", "uvicorn", "torch")
    return {
        "cores": sorted(os.sched_getaffinity(0)),
        "niceness": os.nice(0),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names if _installed(name)},
        "options": {k: str(v) for k, v in vars(options).items() if k != "press"},
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
