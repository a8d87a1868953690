"""What clients cost a running search: its trials and its training steps with and without them, both ways.

    python tests/bench/service_load.py --out service_load.json

Needs nothing but the checkout, and a little over 12 minutes. One server runs one search; clients (50 event streams and
100 mixed reads a second) come and go while it runs: phases alone, loaded, loaded, alone (ABBA), five times over, so
that a machine that grows slower or faster costs both sides the same.

So that every trial is the same work, all are one plan: the network of `digits`, unpruned, 4-bit weights, the same
seconds of training from the same teacher, nothing ended early. Exports, quality and all writing are as in any search;
only proposals (random) and timing (once) are cheaper. A trial counts if it began and ended within one phase, without
the phase's first seconds.

How to read what is printed:
- `trials` are per minute of search, between the ends of two trials: whatever slows the search shows here.
- `training steps` are per second of training: less noisy, for a trial's seconds of training are given and its
  steps are counted; what slows writing and exporting does not show here.
- Each comes as loaded / alone and as alone / loaded, with the 95 % interval of the blocks' ratios (Student's t over
  their logarithms). An interval that is wider than the 5 % in question says that the machine was not quiet enough.
- `reads reached` must be near what was asked for, or the load was not there.

Regime: the last core is the server's and the clients', the search has all others, with clients and without. With
`--shared` (and on one core) all of them use all cores; then what server and clients compute is taken from the search,
as clients on other machines would not. Ends with 1 if a request failed, the load was not reached, or more was lost
than `--allowed-loss` by either measure.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

# Trials that are all the same work; see above.
BATCH = 64
SAME = {
    "space.weight_bits": [4],
    "space.activations": ["float"],
    "space.max_prune_ratio": 0.0,
    "space.remove_blocks": False,
    "search.sampler": "random",
    "search.without": ["stop", "ladder", "inherit"],
    "search.sweep": 0,
    "search.train_s": 1.5,
    "search.final_share": 0.0,
    "search.max_drop": 1.0,
    "search.batch_size": BATCH,
}
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
    pressed_s: float = 0.0


class Server:
    """A server in a process of its own."""

    def __init__(self, workspace: Path, *, log: Path, cores: list[int]) -> None:
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
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # a child begins with the cores of the thread that starts it
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        os.sched_setaffinity(0, everywhere)
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
        with urllib.request.urlopen(request, timeout=600) as response:
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
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:  # its searches end with it
            self.process.kill()
            self.process.wait()
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
    load.pressed_s = time.perf_counter() - begin
    until.set()
    await asyncio.wait(tasks, timeout=60)
    for reader in readers:
        await reader.close()
    return load


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A while with or without clients; Unix seconds, the first of them not counted."""

    block: int
    loaded: bool
    begin: float
    end: float


def begin_search(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Start the search of equal trials, and wait until the first of them has ended."""
    body = {"builtin": "digits", "name": "service-load", "budget": "3h", "set": SAME}  # it is cancelled
    state = server.call("POST", "/studies", {**body, "seed": 0})
    while state["state"] in BUSY:
        rows = trial_rows(server, state["id"])
        if sum(row["origin"] == "search" and row["state"] == "complete" for row in rows) >= 2:
            return state
        time.sleep(0.5)
        state = server.call("GET", f"/studies/{state['id']}")
    raise SystemExit(f"the search ended before it was measured: {state['state']}, {state['error']}")


def trial_rows(server: Server, study: str) -> list[dict[str, Any]]:
    """Every trial of the study."""
    rows: list[dict[str, Any]] = []
    after: int | None = -1
    while after is not None:
        page = server.call("GET", f"/studies/{study}/trials?limit=500&after={after}")
        rows, after = rows + page["items"], page["next"]
    return rows


def started(server: Server, study: str) -> float:
    """Unix seconds at which the search had spent nothing, by its own clock."""
    found = []
    for _ in range(20):
        before = time.time()
        spent_s = server.call("GET", f"/studies/{study}")["spent_s"]
        found.append((before + time.time()) / 2 - spent_s)
        time.sleep(0.25)
    return statistics.median(found)


def measure(server: Server, study: str, folder: Path, options: argparse.Namespace) -> tuple[list[Phase], list[Any]]:
    """All phases, and what the clients of the loaded ones saw."""
    phases, loads = [], []
    for number in range(4 * options.blocks):
        loaded = number % 4 in (1, 2)
        clients = press_with(server, study, folder, number, options) if loaded else None
        time.sleep(options.settle)
        begin = time.time()
        time.sleep(options.phase)
        phases.append(Phase(block=number // 4, loaded=loaded, begin=begin, end=time.time()))
        state = server.call("GET", f"/studies/{study}")
        if clients is not None:
            loads.append(clients())
        print(_line(phases[-1], state, loads[-1] if loaded else None), flush=True)
        if state["state"] not in BUSY:
            raise SystemExit(f"the search ended while it was measured: {state['state']}, {state['error']}")
    return phases, loads


def press_with(
    server: Server, study: str, folder: Path, number: int, options: argparse.Namespace
) -> Callable[[], dict[str, Any]]:
    """Start the clients in a process of their own; the function that is returned ends them and tells what they saw."""
    ended, results = folder / f"{number}.ended", folder / f"{number}.json"
    command = [sys.executable, __file__, "--press", str(server.port), study, str(ended), str(results)]
    command += ["--streams", str(options.streams), "--rate", str(options.rate)]
    command += [] if options.shared else ["--client-core", str(options.cores[-1])]
    clients = subprocess.Popen(command, env={**os.environ, "AUTOCOMPRESS_TOKEN": server.token})
    before, start = server.cpu_s(), time.monotonic()

    def end() -> dict[str, Any]:
        ended.touch()
        share = (server.cpu_s() - before) / (time.monotonic() - start)
        clients.wait(120)
        return {**json.loads(results.read_text()), "server_cores": round(share, 3)}

    return end


def within(rows: list[dict[str, Any]], phases: list[Phase], zero: float) -> list[dict[str, Any]]:
    """Of every phase: the trials that lie in it whole, their seconds, and their training.

    Args:
        rows: trials in the order in which they ended; `spent_s` is when, in seconds after `zero`.
    """
    found: list[dict[str, Any]] = [
        {**asdict(phase), "trials": 0, "seconds": 0.0, "steps": 0.0, "trained_s": 0.0} for phase in phases
    ]
    for before, row in itertools.pairwise(rows):
        begin, end = zero + before["spent_s"], zero + row["spent_s"]
        if row["origin"] != "search" or "train" not in row["durations_s"]:
            continue
        for entry in found:
            if entry["begin"] <= begin and end <= entry["end"]:
                entry["trials"] += 1
                entry["seconds"] += end - begin
                entry["steps"] += row["trained_samples"] / BATCH
                entry["trained_s"] += row["durations_s"]["train"]
    return found


def compare(entries: list[dict[str, Any]], amount: str, seconds: str) -> dict[str, Any]:
    """A rate with and without clients, their ratio both ways, and the 95 % interval of the blocks' ratios."""

    def rate(chosen: list[dict[str, Any]]) -> float:
        total_s = sum(entry[seconds] for entry in chosen)
        return sum(entry[amount] for entry in chosen) / total_s if total_s else math.nan

    alone, loaded = (rate([e for e in entries if e["loaded"] is of]) for of in (False, True))
    logs = []
    for block in sorted({entry["block"] for entry in entries}):
        of_block = [e for e in entries if e["block"] == block]
        both = [rate([e for e in of_block if e["loaded"] is of]) for of in (True, False)]
        logs.append(math.log(both[0] / both[1]) if all(r > 0 for r in both) else math.nan)
    low, high = _interval(logs)
    return {
        "alone_per_s": alone,
        "loaded_per_s": loaded,
        "loaded_to_alone": loaded / alone,
        "alone_to_loaded": alone / loaded,
        "loaded_to_alone_ci": [low, high],
        "alone_to_loaded_ci": [1 / high, 1 / low],
        "blocks": [math.exp(value) for value in logs],
    }


def _interval(logs: list[float]) -> tuple[float, float]:
    """95 % interval of the mean, as a ratio; NaN for fewer than two blocks."""
    if len(logs) < 2:
        return math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(statistics.fmean(logs) - half), math.exp(statistics.fmean(logs) + half)


def summary(load: Load) -> dict[str, Any]:
    """The clients' figures."""
    ordered = sorted(load.seconds) or [math.nan]
    quantiles = {
        f"p{q}_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 1) for q in (50, 95, 99)
    }
    return {**asdict(load), **quantiles, "seconds": None, "mean_ms": round(1000 * statistics.fmean(ordered), 1)}


def main() -> int:
    """Run the phases and print what they say; 1 if a request failed or the search lost more than its share."""
    options = _options()
    if options.press:
        return _press(options)
    options.cores = sorted(os.sched_getaffinity(0))
    options.shared = options.shared or len(options.cores) < 2
    machine = _machine(options)
    print(f"{machine}\nthis takes about {_takes_s(options) / 60:.0f} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="autocompress-bench-") as temporary:
        folder = Path(temporary)
        cores = options.cores if options.shared else options.cores[:-1]
        server = Server(folder / "runs", log=folder / "server.log", cores=cores)
        try:
            server.wait_until_ready()
            if not options.shared:  # what answers clients; the thread that starts searches has begun already
                os.sched_setaffinity(server.process.pid, options.cores[-1:])
            study = begin_search(server, options)["id"]
            zero = started(server, study)
            phases, loads = measure(server, study, folder, options)
            rows = trial_rows(server, study)
            server.call("POST", f"/studies/{study}/cancel")
        finally:
            server.stop()
    entries = within(rows, phases, zero)
    trials, steps = compare(entries, "trials", "seconds"), compare(entries, "steps", "trained_s")
    failed = [text for load in loads for text in load["failed"]]
    reached = sum(load["answers"] for load in loads) / sum(load["pressed_s"] for load in loads)
    counted = sum(entry["trials"] for entry in entries)
    print(f"\n{counted} trials counted in {len(phases)} phases of {options.phase:g} s")
    print(_told("trials", trials, 60, "a minute"))
    print(_told("training steps", steps, 1, "a second"))
    print(f"reads reached: {reached:.1f} of {options.rate:g} a second; {options.streams} streams; ", end="")
    print(f"{len(failed)} failed requests{': ' + '; '.join(failed[:3]) if failed else ''}")
    if options.out:
        report = {"machine": machine, "trials": trials, "training_steps": steps, "reads_per_s": reached}
        report |= {"failed": failed, "phases": entries, "clients": loads}
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    lost = min(trials["loaded_to_alone"], steps["loaded_to_alone"]) < 1 - options.allowed_loss
    return int(bool(failed) or lost or reached < 0.95 * options.rate)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5, help="of four phases each: alone, loaded, loaded, alone")
    parser.add_argument("--phase", type=float, default=30.0, help="seconds of a phase that count")
    parser.add_argument("--settle", type=float, default=4.0, help="seconds before each that do not")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=100.0, help="reads a second")
    parser.add_argument("--shared", action="store_true", help="search, server and clients share all cores")
    parser.add_argument("--allowed-loss", type=float, default=0.05)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--client-core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--press", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def _takes_s(options: argparse.Namespace) -> float:
    return 60 + 4 * options.blocks * (options.phase + options.settle + 1)


def _told(name: str, found: dict[str, Any], per_s: float, unit: str) -> str:
    both = " / ".join(f"{per_s * found[key]:.2f}" for key in ("alone_per_s", "loaded_per_s"))
    ratios = [
        f"{key.replace('_to_', ' / ')} {found[key]:.3f} [{found[f'{key}_ci'][0]:.3f}, {found[f'{key}_ci'][1]:.3f}]"
        for key in ("loaded_to_alone", "alone_to_loaded")
    ]
    return f"{name}: {both} {unit} alone / loaded; {', '.join(ratios)}"


def _press(options: argparse.Namespace) -> int:
    port, study, ended, results = options.press
    if options.client_core is not None:
        os.sched_setaffinity(0, {options.client_core})
    token = os.environ["AUTOCOMPRESS_TOKEN"]
    load = asyncio.run(press(int(port), token, study, streams=options.streams, rate=options.rate, ended=Path(ended)))
    Path(results).write_text(json.dumps(summary(load)))
    return 0


def _line(phase: Phase, state: dict[str, Any], load: dict[str, Any] | None) -> str:
    text = f"block {phase.block + 1} {'loaded' if phase.loaded else 'alone '}: {state['trials']['total']} trials so far"
    if load:
        text += f"; {load['answers']} answers, {load['not_changed']} of them 304, p50 {load['p50_ms']} ms, "
        text += f"p99 {load['p99_ms']} ms, latest sent {load['late_s']:.2f} s late, {load['events']} events, "
        text += f"the server used {load['server_cores']:.2f} of a core, {len(load['failed'])} failed"
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
