"""The event stream: what happens to the studies, read from the database and told to everybody who listens.

One task reads; every client gets the same text. A trial's event has the trial's place in the order of
writing as its id, so a client that comes back with `Last-Event-ID` gets every trial that it missed, once.
What else is told (state, front, job) is how things stand, and is told anew to whoever connects; `deleted` is told
once to those who listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent

from autocompress.errors import NotFoundError
from autocompress.records import finite
from autocompress.service.views import Views, iso_time, study_id, trial_row

_POLL_S = 0.5
_HEARTBEAT_S = 10.0
_BACKLOG = 2000  # events that a slow client may be behind
_MAX_MISSED = 20_000
_log = logging.getLogger("autocompress.service")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one study; `place` is that of the latest trial when it was made."""

    study: str
    kind: str
    place: int
    text: str

    def sse(self) -> ServerSentEvent:
        """The event on the wire."""
        return ServerSentEvent(raw_data=self.text, event=self.kind, id=str(self.place))


class Hub:
    """Reads what is new while anybody listens, and hands it out."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._queues: set[asyncio.Queue[Event | None]] = set()
        self._place = -1  # nothing was read yet
        self._told: dict[str, dict[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()  # two looks at once would tell the same news twice
        self._closed = False
        self.open = 0  # streams that were admitted and have not ended

    def start(self) -> None:
        """Begin to read; needs a running event loop."""
        self._task = asyncio.create_task(self._read())

    def close(self) -> None:
        """End every stream; may be called from a signal handler of the loop."""
        self._closed = True
        for queue in self._queues:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    async def stop(self) -> None:
        """End the streams and the reading."""
        self.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def listen(self, study: str | None, last_id: int | None) -> AsyncIterator[ServerSentEvent]:
        """Events of a study, or of all, until the client goes or the server ends.

        Args:
            last_id: `Last-Event-ID` of a client that comes back: every trial after it is told first.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue(_BACKLOG)
        async with self._looking:
            if not self._queues:  # nobody listened: nothing was read for a while
                await self._look()
            self._queues.add(queue)
            place = max(self._place, 0)  # whatever is newer comes through the queue
        try:
            if last_id is not None and last_id < place:
                async for event in self._missed(study, last_id, place):
                    yield event
            for state in await run_in_threadpool(self._standing, study, place):
                yield state.sse()
            while not self._closed:
                try:
                    event_or_end = await asyncio.wait_for(queue.get(), _HEARTBEAT_S)
                except TimeoutError:
                    yield ServerSentEvent(raw_data=json.dumps({"now": iso_time(time.time())}), event="heartbeat")
                    continue
                if event_or_end is None:
                    return
                if study is None or event_or_end.study == study:
                    yield event_or_end.sse()
        finally:
            self._queues.discard(queue)

    async def _missed(self, study: str | None, last_id: int, place: int) -> AsyncIterator[ServerSentEvent]:
        told = 0
        while told < _MAX_MISSED:
            events = await run_in_threadpool(self._trials, study, last_id, place)
            for event in events:
                yield event.sse()
            if not events:
                return
            told, last_id = told + len(events), events[-1].place

    # -- reading

    async def _read(self) -> None:
        while not self._closed:
            async with self._looking:
                if self._queues:
                    await self._look()
            await asyncio.sleep(_POLL_S)

    async def _look(self) -> None:
        """Read what is new and hand it out; the caller holds the lock."""
        try:
            events, place = await run_in_threadpool(self._news, self._place)
        except Exception:  # a locked or full disk: the next look may be luckier
            _log.exception("the event stream could not read the database")
            return
        self._place = max(self._place, place)
        for event in events:
            for queue in list(self._queues):
                try:
                    queue.put_nowait(event)
                except asyncio.QueueFull:  # it does not read: it may come back with its last id
                    self._queues.discard(queue)
                    with contextlib.suppress(asyncio.QueueEmpty):
                        queue.get_nowait()
                    queue.put_nowait(None)

    def _news(self, place: int) -> tuple[list[Event], int]:
        latest = self._views.store.last_written()
        trials = self._trials(None, place, latest) if place >= 0 else []
        if trials and len(trials) >= _BACKLOG // 2:  # a flood: the rest comes with the next look
            latest = trials[-1].place
        changed: list[Event] = []
        names = self._views.names()
        for name in set(self._told) - set(names):
            del self._told[name]
            changed.append(Event(name, "deleted", latest, _text({"id": study_id(name), "study": name})))
        for name in names:
            changed += self._changes(name, latest)
        return [*trials, *changed], latest

    def _trials(self, study: str | None, after: int, upto: int) -> list[Event]:
        rows = self._views.store.written_since(after, upto=upto, name=study, limit=_BACKLOG // 2)
        return [
            Event(name, "trial", at, _text({"id": study_id(name), "study": name, "trial": trial_row(trial)}))
            for at, name, trial in rows
        ]

    def _changes(self, name: str, place: int) -> Iterator[Event]:
        """Events for what differs from what was told of a study."""
        version = self._views.version(name)
        before = self._told.get(name, {})
        if before.get("version") == version:
            return
        try:
            facts = self._facts(name)
        except NotFoundError:
            return
        self._told[name] = {"version": version, **facts}
        for kind, value in facts.items():
            if kind not in before or _without_time(before[kind]) != _without_time(value):
                yield Event(name, kind, place, _text(value))

    def _standing(self, study: str | None, place: int) -> list[Event]:
        """How things stand, for somebody who begins to listen."""
        names = [study] if study is not None else self._views.names()[:100]
        events = []
        for name in names:
            with contextlib.suppress(NotFoundError):
                events += [Event(name, kind, place, _text(value)) for kind, value in self._facts(name).items()]
        return events

    def _facts(self, name: str) -> dict[str, Any]:
        summary, view = self._views.summary(name), self._views.view(name)
        facts: dict[str, Any] = {"state": summary}
        if summary["job"] is not None:
            facts["job"] = {"id": summary["id"], "study": name, "job": summary["job"]}
        if view is not None and view.record.baseline is not None:
            facts["front"] = {
                "id": summary["id"],
                "study": name,
                "hypervolume": summary["hypervolume"],
                "best": summary["best"],
                "front": [point.trial for point in view.front],
            }
        return facts


def _without_time(value: dict[str, Any]) -> dict[str, Any]:
    return {key: entry for key, entry in value.items() if key not in ("now", "deadline", "spent_s")}


def _text(value: Any) -> str:
    return json.dumps(finite(value), separators=(",", ":"))
