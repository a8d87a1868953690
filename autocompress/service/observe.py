"""What the server tells about itself: a log line per request, numbers for Prometheus, and the audit trail.

Logs and numbers hold no query strings, no headers and no bodies, so no token can be in them.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocompress.service.tokens import Tokens
from autocompress.study.database import Database

_log = logging.getLogger("autocompress.service")
_RESERVED = frozenset(vars(logging.makeLogRecord({})))
_BUCKETS_S = (0.005, 0.025, 0.1, 0.5, 2.5)


@dataclass(slots=True)
class Seen:
    """One request, from its arrival to its last byte."""

    id: str
    method: str
    path: str
    address: str
    actor: str = "-"
    status: int = 0
    start: float = field(default_factory=time.perf_counter)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; tokens that got into a text are taken out of it."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        super().__init__()
        self._tokens = tokens

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _RESERVED},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(entry, default=str)
        return self._tokens.hidden_in(text) if self._tokens else text


def log_to_stderr(tokens: Tokens) -> None:
    """Write what happens as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(tokens))
    for name, level in (("autocompress.service", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class Observer:
    """Counts requests and writes a line for each; threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, list[float]] = {}
        self._refused: Counter[str] = Counter()

    def seen(self, seen: Seen, scope: Mapping[str, Any]) -> None:
        """A request has been answered."""
        route = getattr(scope.get("route"), "path", "") or "other"
        seconds = time.perf_counter() - seen.start
        with self._lock:
            self._requests[seen.method, route, seen.status] += 1
            row = self._seconds.setdefault(route, [0.0, 0.0, *([0.0] * len(_BUCKETS_S))])
            row[0] += 1
            row[1] += seconds
            for index, bound in enumerate(_BUCKETS_S):
                row[2 + index] += seconds <= bound
        level = logging.INFO if seen.method not in ("GET", "HEAD") or seen.status >= 400 else logging.DEBUG
        if _log.isEnabledFor(level):
            facts = {"method": seen.method, "path": seen.path[:200], "status": seen.status, "actor": seen.actor}
            facts |= {"ms": round(seconds * 1000, 1), "address": seen.address, "request": seen.id}
            _log.log(level, "request", extra=facts)

    def failed(self, seen: Seen, error: Exception) -> None:
        """Our own code raised."""
        _log.error("internal error", exc_info=error, extra={"request": seen.id, "path": seen.path[:200]})

    def refused(self, why: str) -> None:
        """The door was shut: token, host, origin or size."""
        with self._lock:
            self._refused[why] += 1

    def text(self, gauges: Mapping[str, Mapping[str, float]]) -> str:
        """Everything in the text format of Prometheus.

        Args:
            gauges: by name of the metric, values by labels, for example {"jobs": {'state="queued"': 2}}.
        """
        with self._lock:
            lines = ["# TYPE autocompress_http_requests_total counter"]
            for (method, route, status), count in sorted(self._requests.items()):
                labels = f'method="{method}",route="{route}",status="{status}"'
                lines.append(f"autocompress_http_requests_total{{{labels}}} {count}")
            lines.append("# TYPE autocompress_http_request_duration_seconds histogram")
            for route, (requests, total, *buckets) in sorted(self._seconds.items()):
                name, label = "autocompress_http_request_duration_seconds", f'route="{route}"'
                bounds = (*map(str, _BUCKETS_S), "+Inf")
                for bound, below in zip(bounds, (*buckets, requests), strict=True):
                    lines.append(f'{name}_bucket{{{label},le="{bound}"}} {below:g}')
                lines += [f"{name}_sum{{{label}}} {total:.6f}", f"{name}_count{{{label}}} {requests:g}"]
            lines.append("# TYPE autocompress_refused_requests_total counter")
            lines += [f'autocompress_refused_requests_total{{why="{w}"}} {n}' for w, n in sorted(self._refused.items())]
        for metric, values in gauges.items():
            lines.append(f"# TYPE autocompress_{metric} gauge")
            lines += [f"autocompress_{metric}{'{' + k + '}' if k else ''} {v:g}" for k, v in values.items()]
        return "\n".join(lines) + "\n"


class Audit:
    """Who did what to which study, in the database of the workspace; nothing is ever changed or removed."""

    def __init__(self, workspace: Path) -> None:
        self._database = Database(workspace.absolute())

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def write(self, actor: str, address: str, action: str, study: str | None, **detail: Any) -> None:
        """Add an entry."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO ac_audit (at, actor, address, action, study, detail) VALUES (?, ?, ?, ?, ?, ?)",
                (at, actor, address, action, study, json.dumps(detail)),
            )
        _log.info(
            "audit", extra={"action": action, "actor": actor, "study": study, "address": address, "detail": detail}
        )

    def read(self, *, before: int | None, limit: int) -> list[dict[str, Any]]:
        """Entries, newest first; `before`: only those with a smaller id."""
        query = "SELECT * FROM ac_audit WHERE id < ? ORDER BY id DESC LIMIT ?"
        with self._database.read() as connection:
            rows = connection.execute(query, (2**62 if before is None else before, limit)).fetchall()
        return [{**dict(row), "detail": json.loads(row["detail"])} for row in rows]
