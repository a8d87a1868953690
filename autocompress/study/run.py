"""Starts a study from its configuration, or takes one up again; `driver.py` then runs it to its end."""

from __future__ import annotations

import datetime
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from autocompress.config import StudyConfig
from autocompress.errors import AutocompressError, UsageError
from autocompress.records import DeviceFacts, StudyRecord, StudyState
from autocompress.study.driver import Driver, Listener
from autocompress.study.store import StudyStore, check_study_name

_VERSIONS = ("torch", "torch-pruning", "onnx", "onnxruntime", "onnxscript", "optuna", "numpy")


def search_study(config: StudyConfig, *, workspace: Path, base: Path | None, listener: Listener) -> StudyRecord:
    """Run a new study to its end.

    Args:
        base: folder of the study file; its modules can be imported and its paths are relative to it.
        listener: told what goes on, and of every trial that ended.
    Raises:
        UsageError: the model, the data or the workspace cannot be used; no study is left behind.
        BudgetError: the budget ended before the baseline was measured.
        KeyboardInterrupt: the state is kept and can be resumed.
    """
    return _start(config, workspace.absolute(), base, None, listener)


def search_study_object(
    config: StudyConfig, *, model: Any, data: Any, workspace: Path, listener: Listener
) -> StudyRecord:
    """Like `search_study`, with model and data from memory; they are kept with the study, so it can be resumed."""
    import cloudpickle

    try:
        content = cloudpickle.dumps((model, data, None))
    except Exception as error:
        raise UsageError(
            f"the model or the data cannot be handed to the worker process: {error}; "
            "use a study file with factories instead"
        ) from error
    return _start(config, workspace.absolute(), None, content, listener)


def resume_study(name: str, *, workspace: Path, listener: Listener) -> StudyRecord:
    """Continue a study with what is left of its budget.

    Raises:
        NotFoundError: no such study.
        UsageError: it is finished, or another process runs it.
    """
    workspace = workspace.absolute()
    with StudyStore(workspace) as store:
        record = store.study(name)
        store.claim(name)
        if record.state is StudyState.FINISHED:
            raise UsageError(
                f"study {name!r} is finished; `autocompress front {name}` shows it, "
                "`autocompress search --name` starts another"
            )
        config = StudyConfig.model_validate(record.config)
        pickled = workspace / "artifacts" / name / "source.pkl"
        base = Path(record.base) if record.base else None
        store.update(name, state=StudyState.RUNNING)
        return Driver(store, config, base, pickled if pickled.exists() else None, listener).run()


def _start(
    config: StudyConfig, workspace: Path, base: Path | None, content: bytes | None, listener: Listener
) -> StudyRecord:
    check_study_name(config.name)  # before anything is made
    with StudyStore(workspace) as store:
        store.claim(config.name)
        store.create(_new_record(config, base))
        folder = workspace / "artifacts" / config.name
        if folder.exists():  # of a study that never got a baseline
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        pickled = None
        if content is not None:
            pickled = folder / "source.pkl"
            pickled.write_bytes(content)
        try:
            return Driver(store, config, base, pickled, listener).run()
        except AutocompressError:
            if store.study(config.name).baseline is None:
                store.discard(config.name)
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _new_record(config: StudyConfig, base: Path | None) -> StudyRecord:
    device = config.device
    return StudyRecord(
        name=config.name,
        state=StudyState.RUNNING,
        seed=config.search.seed,
        config=config.model_dump(mode="json"),
        base=str(base.absolute()) if base else None,
        config_hash=config.digest(),
        budget_s=config.search.budget,
        spent_s=0.0,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=DeviceFacts(name=device.name, runtime=device.runtime, threads=device.threads, batch=device.batch),
        objectives=config.search.objectives,
        versions={"python": platform.python_version(), **{n: _version(n) for n in ("autocompress", *_VERSIONS)}},
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
