"""When a search ends early because its trials fail, all in the same way."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autocompress.records import TrialRecord, TrialState
from autocompress.study.ledger import LOST

_SAME_FAILURES = ((3, 3), (5, 10))  # so many of the latest attempts
_NUMBER = re.compile(r"\d+")  # the same failure after 7 steps and after 8
_SEARCHED = ("baseline", "anchor", "search", "longer")  # origins of the trials before the last stage


def repeated_failure(trials: Sequence[TrialRecord]) -> str:
    """Why the search ends early: the same failure three times in a row, or in half of the last ten attempts; or "".

    Numbers in the reason do not count. An attempt is complete or failed: a stopped trial proves nothing, and
    neither does one that was interrupted, or one of the last stage.
    """
    ended = (TrialState.COMPLETE, TrialState.FAILED)
    attempts = [t for t in trials if t.state in ended and t.origin in _SEARCHED and t.reason != LOST]
    for same, latest in _SAME_FAILURES:
        alike: dict[str, list[str]] = {}
        for trial in attempts[-latest:]:
            if trial.state is TrialState.FAILED:
                alike.setdefault(_NUMBER.sub("#", trial.reason), []).append(trial.reason)
        for reasons in alike.values():
            if len(reasons) >= same:
                among = f" among {latest} attempts" if latest > same else ""
                return f"ended after {same} identical failures{among}: {reasons[0]}"
    return ""
