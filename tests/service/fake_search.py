"""A job's process with a stand-in for the engine: a trial every tenth of a second, under the study's lock.

Every trial is also a line of `trials.log`, with the process that made it: two processes at once would show.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from dataclasses import replace

from example_study import example_record, example_trial

from autocompress import errors
from autocompress.records import StudyState
from autocompress.study.store import StudyStore

TRIALS = int(os.environ.get("FAKE_TRIALS", "30"))
# Dies with its parent, as the engine's worker does, and is in another process group.
WORKER = (
    "import os, sys, time\nparent, held = os.getppid(), b'x' * int(sys.argv[1])\n"
    "while os.getppid() == parent: time.sleep(0.1)"
)
HELD = int(os.environ.get("FAKE_BYTES", "0"))
FEW = 5  # trials before the worker holds that much; then no more are made, so none is cut off by the end


def search_study(config, *, workspace, base, listener):
    if error := os.environ.get("FAKE_ERROR"):
        raise getattr(errors, error, RuntimeError)("as was asked")
    with StudyStore(workspace) as store:
        store.claim(config.name)
        record = replace(
            example_record(config.name),
            state=StudyState.RUNNING,
            config=config.model_dump(mode="json"),
            budget_s=config.search.budget,
            spent_s=0.0,
        )
        store.create(record)
        return _run(store, config.name, workspace)


def resume_study(name, *, workspace, listener):
    with StudyStore(workspace) as store:
        store.claim(name)
        store.update(name, state=StudyState.RUNNING)
        return _run(store, name, workspace)


def _run(store, name, workspace):
    worker = _worker(workspace)
    done = len(store.trials(name))
    before = store.study(name).spent_s
    try:
        with (workspace / "trials.log").open("a") as log:
            for number in range(done, TRIALS):
                if HELD and number == FEW:
                    _worker(workspace, HELD).wait()
                with _unasked():
                    store.add_trial(name, example_trial(number, 0.97, 100_000 - number, 0.5))
                    log.write(f"{name} {number} {os.getpid()}\n")
                    log.flush()
                store.tick(name, before + 0.1 * (number + 1 - done), "search")
                time.sleep(0.1)
    except KeyboardInterrupt:
        store.update(name, state=StudyState.INTERRUPTED)
        raise
    finally:
        worker.kill()
        worker.wait()
    return store.update(name, state=StudyState.FINISHED)


def _worker(workspace, held=0):
    return subprocess.Popen([sys.executable, "-S", "-c", WORKER, str(held)], start_new_session=True, cwd=workspace)


@contextmanager
def _unasked():
    """A trial and its line are kept both or neither: a request to end waits until then."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> int:
    module = types.ModuleType("autocompress.study.run")
    module.search_study, module.resume_study = search_study, resume_study
    sys.modules["autocompress.study.run"] = module
    from autocompress.service.job import main as run_job

    return run_job()


if __name__ == "__main__":
    sys.exit(main())
