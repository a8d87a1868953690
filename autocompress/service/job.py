"""The process of one job: `autocompress search` or `resume` on a study of the workspace, in a session of its own.

It starts nothing unless the job is still its server's, and ends when its server does, so nobody runs a
job twice and no search outlives a killed server. What it found is in the study, whenever it ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from autocompress.config import StudyConfig
from autocompress.errors import AutocompressError, NotFoundError, first_line
from autocompress.records import Progress, StudyRecord, StudyState, TrialRecord
from autocompress.service.jobs import Job, JobState, JobStore
from autocompress.study.store import StudyStore

_GRACE_S = 8.0
_LOCKED_S = 30.0


def main() -> int:
    """Run a job to its end and record how it ended; 130 when it was interrupted, which its server records."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    for name, kind in (("workspace", Path), ("job", str), ("attempt", int), ("server", str), ("parent", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    _end_with(given.parent)
    jobs = JobStore(given.workspace)
    try:
        study = _study_of(jobs, given.job)
        job = jobs.begin(given.job, given.attempt, given.server, trials=_trials(given.workspace, study))
        if job is None:
            return 0
        state, error, exit_code = _run(job, given.workspace)
        jobs.end(job, state, error, exit_code=exit_code)
    except KeyboardInterrupt:
        return 130
    return 0


def _run(job: Job, workspace: Path) -> tuple[JobState, str | None, int]:
    """How the search ended, and what the command line would have said and returned if it failed."""
    try:
        record = _search(job, workspace)
    except AutocompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return JobState.FAILED, str(error), error.exit_code
    except Exception as error:
        traceback.print_exc()
        text = f"internal error, the log of the job has more: {first_line(error)}"
        return JobState.FAILED, text, AutocompressError.exit_code
    if record.state is StudyState.INTERRUPTED:  # by `autocompress cancel` on this machine
        return JobState.CANCELLED, None, 0
    return JobState.FINISHED, None, 0


def _search(job: Job, workspace: Path) -> StudyRecord:
    _wait_for_owner(workspace, job.study)
    with StudyStore(workspace) as store:
        try:
            record: StudyRecord | None = store.study(job.study)
        except NotFoundError:
            record = None
    if record is not None and record.state is StudyState.FINISHED:  # it ended between its last word and this job's
        return record
    from autocompress.study.run import resume_study, search_study

    if record is not None:
        return resume_study(job.study, workspace=workspace, listener=_tell)
    base = job.spec.get("base")
    config = StudyConfig.model_validate(job.spec["config"])
    return search_study(config, workspace=workspace, base=Path(base) if base else None, listener=_tell)


def _tell(event: Progress | TrialRecord) -> None:
    """The log of a job: a line per trial and per thing that goes on."""
    if isinstance(event, Progress):
        print(f"{event.spent_s:8.1f} s  {event.stage}: {event.message}", file=sys.stderr, flush=True)
    else:
        reason = f": {event.reason}" if event.reason else ""
        print(f"{event.spent_s:8.1f} s  trial {event.trial} {event.state}{reason}", file=sys.stderr, flush=True)


def _wait_for_owner(workspace: Path, study: str) -> None:
    """An earlier process of this job may need a moment to notice that its server is gone."""
    end = time.monotonic() + _LOCKED_S
    with StudyStore(workspace) as store:
        while time.monotonic() < end:
            try:
                if store.owner(study) is None:
                    return
            except NotFoundError:
                return
            time.sleep(0.1)


def _study_of(jobs: JobStore, job_id: str) -> str:
    job = jobs.get(job_id)
    return job.study if job else ""


def _trials(workspace: Path, study: str) -> int:
    with StudyStore(workspace) as store:
        try:
            return sum(store.counts(study).values())
        except NotFoundError:
            return 0


def _interrupt(_signal: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # once: what is kept must not be cut off by a second signal
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with(parent: int) -> None:
    """End this process in order when its server is gone, and by force if that takes too long."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(1)

    if os.getppid() != parent:
        raise SystemExit(0)
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
