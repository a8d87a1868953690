"""The command line: verbs, flags, exit codes and what goes to stdout; the contract is in the design, section 5.

Nothing heavy is imported until a verb needs it, so `--help` and `front` answer at once. Results go to
stdout, progress and errors to stderr.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from autocompress.errors import AutocompressError, ConstraintError, NotFoundError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from autocompress.config import StudyConfig
    from autocompress.records import StudyRecord

INTERRUPTED = 130
_ENVIRONMENT = "AUTOCOMPRESS_"
# Values shown for keys that have no default, in the file that `init` writes.
_EXAMPLES: dict[str, Any] = {
    "model.factory": "my_package.nets:make_model",
    "model.weights": "teacher.safetensors",
    "data.factory": "my_package.data:load",
    "task.direction": "maximize",
    "search.max_trials": 100,
    "search.train_s": 20.0,
    "search.max_drop": 0.01,
    "search.max_size": "500kB",
    "search.max_latency": 5.0,
}
_WRITTEN_OUT = ("model.factory", "data.factory", "task.metric", "search.budget")

# Plain help and errors: rich would cost a tenth of a second at every start.
app = typer.Typer(
    name="autocompress",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Search prune ratios, weight bits and distillation as one space; get a Pareto front of measured ONNX files.",
    epilog="Example: autocompress search digits --budget 2m",
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study of the workspace.")]
Workspace = Annotated[
    Path,
    typer.Option(
        "--workspace",
        envvar="AUTOCOMPRESS_WORKSPACE",
        help="Folder of the studies and their artifacts.",
        file_okay=True,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
_WORKSPACE = Path("autocompress-runs")


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """The exit code of a command line; a user's mistake is one sentence on stderr, our bug a traceback."""
    try:
        code = app(args=arguments, prog_name="autocompress", standalone_mode=False)
    except AutocompressError as error:
        return _fail(str(error), error.exit_code)
    except typer.Abort:
        return _fail("interrupted", INTERRUPTED)
    except typer.TyperException as error:  # what is wrong with the arguments
        if len(sys.argv if arguments is None else ["", *arguments]) < 2:  # no verb: the text is the help
            typer.echo(_message(error), err=True)
            return 2
        return _fail(f"{_message(error)}; `autocompress --help` and `autocompress VERB --help` show what there is", 2)
    return code if isinstance(code, int) else 0


# -- searching


@app.command(epilog="Example: autocompress search digits --budget 2m --set space.weight_bits=[4,8]")
def search(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Built-in study, or path of a TOML file.")] = "digits",
    budget: Annotated[str | None, typer.Option(help="Wall-clock for everything: 90s, 10m, 2h.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; that of the file by default.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a value of the study file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    max_trials: Annotated[int | None, typer.Option(help="End after so many trials.")] = None,
    workspace: Workspace = _WORKSPACE,
    as_json: AsJson = False,
) -> int:
    """Search compressed versions of a model until the budget ends."""
    flags = {"budget": budget, "seed": seed, "max_trials": max_trials}
    given = [f"search.{key}={_toml(value)}" for key, value in flags.items() if value is not None]
    config, base = _study_file(study, [*environment_overrides(os.environ), *(overrides or []), *given], name, workspace)
    if config.name in _known_names(workspace):
        raise UsageError(
            f"study {config.name!r} exists in {workspace}; continue it with `autocompress resume {config.name}`"
            " or choose another name with --name"
        )
    from autocompress.study.run import search_study
    from autocompress.terminal import open_view

    minimize = config.task.metric == "mse" or config.task.direction == "minimize"
    with (
        _interruptible(config.name),
        open_view(name=config.name, metric=config.task.metric, minimize=minimize) as view,
    ):
        record = search_study(config, workspace=workspace, base=base, listener=view)
    return _finish(record, workspace, as_json)


@app.command(epilog="Example: autocompress resume digits")
def resume(study: StudyName, workspace: Workspace = _WORKSPACE, as_json: AsJson = False) -> int:
    """Continue an interrupted study with what is left of its budget."""
    from autocompress.api import open_study
    from autocompress.front.summary import metric_direction
    from autocompress.study.run import resume_study
    from autocompress.terminal import open_view

    before = open_study(study, workspace)
    view = open_view(
        name=study,
        metric=str(before.record.config.get("task", {}).get("metric", "accuracy")),
        minimize=metric_direction(before.record) == "minimize",
        trials=before.front_trials,
    )
    with _interruptible(study), view:
        record = resume_study(study, workspace=workspace, listener=view)
    return _finish(record, workspace, as_json)


@app.command(epilog="Example: autocompress cancel digits")
def cancel(study: StudyName, workspace: Workspace = _WORKSPACE, as_json: AsJson = False) -> None:
    """Ask a running search to end.

    What it found stays, and it can be resumed.
    """
    from autocompress.api import open_study
    from autocompress.records import StudyState
    from autocompress.study.store import StudyStore

    state = open_study(study, workspace).record.state
    running = state is StudyState.RUNNING
    if running:
        with StudyStore(workspace) as store:
            store.request_cancel(study)
    text = f"asked {study} to end" if running else f"{study} is not running, it is {state}; nothing to cancel"
    _print({"study": study, "state": str(state), "cancel_requested": running}, as_json, text)


# -- looking at results


@app.command("list", epilog="Example: autocompress list --json")
def list_studies(workspace: Workspace = _WORKSPACE, as_json: AsJson = False) -> None:
    """List the studies of the workspace."""
    rows = _study_rows(workspace)
    if as_json:
        _print_json({"workspace": str(workspace), "studies": rows})
    elif rows:
        from autocompress.terminal import print_studies

        print_studies(rows)
    else:
        typer.echo(f"no studies yet in {workspace}; start one with `autocompress search`", err=True)


@app.command(epilog="Example: autocompress show digits --trial 17")
def show(
    study: StudyName,
    trial: Annotated[int | None, typer.Option(help="Show this trial instead of the study.")] = None,
    workspace: Workspace = _WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show a study, or one of its trials.

    Configuration, groups, what was left alone and why, how the trials ended, and where the budget went.
    """
    from autocompress.study.store import StudyStore

    with StudyStore(workspace, readonly=True) as store:
        record = store.study(study)
        trials = store.trials(study) if trial is None else [store.trial(study, trial)]
        counts = store.counts(study)
        owner = store.owner(study)
    if as_json and trial is None:
        _print_json({"study": record.to_dict(), "trials": _counted(counts), "pid": owner})
    elif as_json:
        _print_json({"study": study, "trial": trials[0].to_dict()})
    else:
        from autocompress.terminal import print_study, print_trial

        print_study(record, trials) if trial is None else print_trial(record, trials[0])


@app.command(epilog="Example: autocompress front digits --json")
def front(study: StudyName, workspace: Workspace = _WORKSPACE, as_json: AsJson = False) -> None:
    """Show the Pareto front of a study, also while it runs."""
    from autocompress.api import open_study

    result = open_study(study, workspace)
    if as_json:
        _print_json(result.document())
    else:
        from autocompress.terminal import print_front

        print_front(result.record, result.front)


@app.command(epilog="Example: autocompress export digits --pick fast --max-drop 0.01 --out digits-bundle")
def export(
    study: StudyName,
    pick: Annotated[str, typer.Option(help="knee, accurate, small, fast or trial:N.")] = "knee",
    max_drop: Annotated[float | None, typer.Option(help="Largest loss of the metric; 0.01 is one point.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest file: 50kB.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Largest latency in milliseconds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; STUDY-bundle by default.")] = None,
    workspace: Workspace = _WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Take one model away as a bundle.

    The measured file, its card and what is needed to run it.

    Limits that are not given are those of the study, except for trial:N.
    """
    from autocompress.api import open_study

    result = open_study(study, workspace)
    limits = {"max_drop": max_drop, "max_size": max_size, "max_latency": max_latency}
    limits = {key: value for key, value in limits.items() if value is not None}
    own = {} if pick.startswith("trial:") else _constraints(result.record)
    choice = result.best(pick=pick, **{**own, **limits})
    folder = choice.export(out or Path(f"{study}-bundle"))
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    document = {"study": study, "trial": choice.point.trial, "out": str(folder), "files": files}
    _print(document, as_json, f"trial {choice.point.trial} is in {folder}: {', '.join(files)}")


@app.command(epilog="Example: autocompress report digits --out digits.html")
def report(
    study: StudyName,
    out: Annotated[Path | None, typer.Option(help="File to write; STUDY.html by default.")] = None,
    workspace: Workspace = _WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Write a report of a study as one HTML file.

    It opens anywhere, offline.
    """
    from autocompress.api import open_study

    result = open_study(study, workspace)
    record, trials = result.record, result.trials
    from autocompress.report import render_report

    path = out or Path(f"{study}.html")
    try:
        path.write_text(render_report(record, trials), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another file with --out") from error
    _print({"study": study, "report": str(path), "bytes": path.stat().st_size}, as_json, f"report: {path}")


# -- the machine and study files


@app.command(epilog="Example: autocompress devices --json")
def devices(as_json: AsJson = False) -> None:
    """List the devices on which latency can be measured."""
    runtimes = {name: _version(name) for name in ("onnxruntime", "openvino")}
    found = [
        {"name": "local", "runtime": runtime, "version": version, "processor": _processor(), "cores": _cores()}
        for runtime, version in runtimes.items()
        if version
    ]
    lines = [f"{d['name']}  {d['runtime']} {d['version']}  {d['processor']}, {d['cores']} cores" for d in found]
    _print({"devices": found}, as_json, "\n".join(lines) or "no runtime is installed; `pip install onnxruntime`")


@app.command(epilog="Example: autocompress doctor --workspace runs")
def doctor(workspace: Workspace = _WORKSPACE, as_json: AsJson = False) -> int:
    """Check this machine and the workspace.

    Versions, cores, database mode, and how steadily this machine computes.
    """
    checks = [*_version_checks(), *_machine_checks(), *_workspace_checks(workspace)]
    lines = [f"{'ok  ' if check['ok'] else 'FAIL'}  {check['check']}: {check['found']}" for check in checks]
    _print({"checks": checks, "ok": all(c["ok"] for c in checks)}, as_json, "\n".join(lines))
    return 0 if all(check["ok"] for check in checks) else UsageError.exit_code


@app.command(epilog="Example: autocompress init study.toml")
def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File to write.")] = Path("study.toml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented study file with every key and its default."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(study_template())
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists and is not overwritten; choose another name: autocompress init FILE"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another path") from error
    _print({"path": str(path)}, as_json, f"wrote {path}; edit it, then: autocompress search {path}")


@app.command(epilog="Example: autocompress schema > study.schema.json")
def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of a study file.

    It is JSON with and without --json.
    """
    from autocompress.config import StudyConfig

    _print_json(StudyConfig.model_json_schema(), indent=None if as_json else 2)


# -- what the verbs share


def environment_overrides(environment: Mapping[str, str]) -> list[str]:
    """ "search.budget=5m" for AUTOCOMPRESS_SEARCH__BUDGET=5m: above the study file, below `--set`.

    Raises:
        UsageError: a variable names no key of a study file.
    """
    from autocompress.config import StudyConfig

    found = []
    for variable, value in sorted(environment.items()):
        if not variable.startswith(_ENVIRONMENT) or "__" not in variable:
            continue
        table, _, key = variable.removeprefix(_ENVIRONMENT).lower().partition("__")
        known = _keys(StudyConfig).get(table)
        if known is None or key not in known:
            pairs = [(table, k) for k in known] if known else [(t, "...") for t in _keys(StudyConfig)]
            names = ", ".join(f"{_ENVIRONMENT}{t.upper()}__{k.upper()}" for t, k in pairs)
            raise UsageError(f"the environment variable {variable} names no key of a study file; known are {names}")
        found.append(f"{table}.{key}={value}")
    return found


def study_template() -> str:
    """A study file with every key, its meaning and its default, made from the schema."""
    from autocompress.config import StudyConfig

    lines = ["# A study of autocompress. A key with a # before it shows its default, or an example if it has none."]
    for table, field in StudyConfig.model_fields.items():
        if table == "name":
            lines += ["", '# name = "my-study"  # the name of this file if omitted']
            continue
        model: type[BaseModel] = field.annotation  # type: ignore[assignment]
        lines += ["", f"[{table}]  # {(model.__doc__ or '').strip().splitlines()[0].partition(': ')[2]}"]
        for key, entry in model.model_fields.items():
            full = f"{table}.{key}"
            value = _EXAMPLES.get(full, entry.default_factory() if entry.default_factory else entry.default)  # type: ignore[call-arg]
            comment = f"  # {entry.description}" if entry.description else ""
            lines.append(f"{'' if full in _WRITTEN_OUT else '# '}{key} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _study_file(study: str, overrides: list[str], name: str | None, workspace: Path) -> tuple[StudyConfig, Path | None]:
    """The resolved configuration of a built-in or a file, and the folder that its paths are relative to."""
    from autocompress.config import load_config, read_toml
    from autocompress.resources import resource

    folder = resource("studies")
    builtins = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    is_file = study.endswith(".toml") or os.sep in study
    if not is_file and study not in builtins:
        _refuse_unknown_study(study, sorted(builtins), workspace)
    path = Path(study) if is_file else builtins[study]
    config = load_config(read_toml(path), name=path.stem, overrides=tuple(overrides), origin=str(path))
    if name is not None:
        config = config.model_copy(update={"name": name})
    return config, path.absolute().parent if is_file else None


def _refuse_unknown_study(study: str, builtins: list[str], workspace: Path) -> NoReturn:
    import difflib

    known = _known_names(workspace)
    if study in known:
        raise UsageError(f"{study!r} is a study of {workspace} already; continue it with `autocompress resume {study}`")
    near = difflib.get_close_matches(study, [*builtins, *known], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}" if near else f"built-in are {', '.join(builtins) or 'none'}"
    raise NotFoundError(f"no built-in study {study!r}; {hint}; for a study file of your own: `autocompress init`")


def _known_names(workspace: Path) -> list[str]:
    from autocompress.api import study_names

    return study_names(workspace)


@contextlib.contextmanager
def _interruptible(name: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the search in order; the way to continue it is printed."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"interrupted; continue with `autocompress resume {name}`", INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _finish(record: StudyRecord, workspace: Path, as_json: bool) -> int:
    """Print what a search found; the exit code says whether it ended, and whether the constraints are met."""
    from autocompress.api import StudyResult
    from autocompress.records import StudyState

    result = StudyResult(record.name, workspace)
    if as_json:
        _print_json(result.document())
    else:
        from autocompress.terminal import print_front

        print_front(result.record, result.front)
    if record.state is StudyState.INTERRUPTED:
        return _fail(f"interrupted; continue with `autocompress resume {record.name}`", INTERRUPTED)
    if record.state is StudyState.FAILED:
        return _fail(record.message or f"study {record.name!r} failed; `autocompress show {record.name}` says why", 1)
    if record.message:  # finished, but earlier than the budget: say why
        typer.echo(record.message, err=True)
    if limits := _constraints(result.record):
        try:
            result.best(**limits)
        except ConstraintError as error:
            return _fail(str(error), error.exit_code)
    return 0


def _constraints(record: StudyRecord) -> dict[str, Any]:
    table = record.config.get("search", {})
    return {key: table[key] for key in ("max_drop", "max_size", "max_latency") if table.get(key) is not None}


def _study_rows(workspace: Path) -> list[dict[str, Any]]:
    from autocompress.study.database import DATABASE
    from autocompress.study.store import StudyStore

    if not (workspace / DATABASE).is_file():
        return []
    with StudyStore(workspace, readonly=True) as store:
        return [
            {
                "study": record.name,
                "state": str(record.state),
                "created": record.created,
                "budget_s": record.budget_s,
                "spent_s": record.spent_s,
                "trials": _counted(store.counts(record.name)),
            }
            for record in store.studies()
        ]


def _counted(counts: Mapping[Any, int]) -> dict[str, int]:
    from autocompress.records import TrialState

    return {"total": sum(counts.values())} | {state.value: counts.get(state, 0) for state in TrialState}


def _keys(config: type[BaseModel]) -> dict[str, list[str]]:
    models = {table: field.annotation for table, field in config.model_fields.items() if table != "name"}
    return {table: list(model.model_fields) for table, model in models.items()}  # type: ignore[union-attr]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return json.dumps(value)


# -- doctor


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _version_checks() -> list[dict[str, Any]]:
    needed = ("torch", "torch-pruning", "onnx", "onnxruntime", "optuna", "sqlalchemy", "pydantic", "plotly")
    python = {"check": "python", "ok": True, "found": sys.version.split()[0]}
    found = [(name, _version(name)) for name in needed]
    return [
        python,
        *({"check": n, "ok": v is not None, "found": v or f"missing; `pip install {n}`"} for n, v in found),
    ]


def _machine_checks() -> list[dict[str, Any]]:
    import time

    def block() -> float:
        start = time.perf_counter()
        sum(range(20_000))
        return time.perf_counter() - start

    blocks = sorted(block() for _ in range(200))
    spread = blocks[189] / blocks[100] - 1
    advice = "" if spread < 0.2 else "; other programs are using the processor, latency intervals will be wide"
    return [
        {"check": "processor", "ok": True, "found": f"{_processor()}, {_cores()} cores"},
        {"check": "timing noise", "ok": True, "found": f"p95 is {spread:.0%} above p50{advice}"},
    ]


def _workspace_checks(workspace: Path) -> list[dict[str, Any]]:
    """Tries the database mode in a folder of its own, so that nothing is left behind."""
    import sqlite3
    import tempfile

    from autocompress.study.database import file_system
    from autocompress.study.store import StudyStore

    existing = next(folder for folder in (workspace.absolute(), *workspace.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".autocompress-doctor-") as folder:
            StudyStore(Path(folder)).close()
        problem = ""
    except (OSError, UsageError) as error:
        problem = f"{error}; choose another folder with --workspace"
    kind = file_system(existing)
    return [
        {"check": "workspace", "ok": not problem, "found": problem or f"{workspace} can be written"},
        {"check": "sqlite", "ok": not problem and kind is None, "found": f"{sqlite3.sqlite_version}, {kind or 'WAL'}"},
    ]


def _processor() -> str:
    import platform

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- printing


def _print(document: Mapping[str, Any], as_json: bool, text: str) -> None:
    _print_json(document) if as_json else typer.echo(text)


def _print_json(document: Any, *, indent: int | None = None) -> None:
    typer.echo(json.dumps(_finite(document), indent=indent, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; what could not be measured is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, tuple | list) else value


def _message(error: Exception) -> str:
    message: Callable[[], str] | None = getattr(error, "format_message", None)
    return (message() if message else str(error)).rstrip(".")


def _fail(text: str, code: int) -> int:
    typer.echo(f"error: {text}" if code != INTERRUPTED else text, err=True)
    return code
