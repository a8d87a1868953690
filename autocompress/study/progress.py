"""Tells how far something is, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable

Report = Callable[[str], None]


def each_second(report: Report, text: str) -> Callable[[float], None]:
    """A function of the share that is done which reports it about once a second."""
    said = time.monotonic()

    def tell(share: float) -> None:
        nonlocal said
        if time.monotonic() - said > 1:
            said = time.monotonic()
            report(f"{text}, {share:.0%}")

    return tell


class Clock:
    """Seconds per stage, from one lap to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Charge what has passed since the last lap to a stage."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
