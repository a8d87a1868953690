"""The command line: verbs, flags, exit codes and what goes to stdout; the contract is in the design, section 5.

Nothing heavy is imported until a verb needs it, so `--help` and `front` answer at once. Results go to
stdout, progress and errors to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from autocompress.errors import AutocompressError, ConstraintError, UsageError

if TYPE_CHECKING:
    from autocompress.api import StudyResult
    from autocompress.records import TrialRecord
    from autocompress.service.client import Client

INTERRUPTED = 130

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
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        envvar="AUTOCOMPRESS_SERVER",
        help="Ask this server instead of the workspace; its token is in AUTOCOMPRESS_TOKEN.",
    ),
]
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
        ways = "`autocompress --help` and `autocompress VERB --help` show what there is"
        return _fail(f"{_message(error)}; {_as_setting(error)}{ways}", 2)
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
    server: Server = None,
    as_json: AsJson = False,
) -> int:
    """Search compressed versions of a model until the budget ends."""
    flags = {"budget": budget, "seed": seed, "max_trials": max_trials}
    if server is not None:
        return _search_there(server, workspace, study, overrides or [], name, flags, as_json)
    from autocompress.api import study_names
    from autocompress.study_file import environment_overrides, find_study, toml_value

    given = [f"search.{key}={toml_value(value)}" for key, value in flags.items() if value is not None]
    every = [*environment_overrides(os.environ), *(overrides or []), *given]
    config, base = find_study(study, overrides=every, workspace=workspace)
    if name is not None:
        config = config.model_copy(update={"name": name})
    if config.name in study_names(workspace):
        raise UsageError(
            f"study {config.name!r} exists in {workspace}; continue it with"
            f" `autocompress resume {config.name}{_flags(workspace)}` or choose another name with --name"
        )
    from autocompress.config import is_minimized
    from autocompress.study.run import search_study
    from autocompress.terminal import open_view

    metric, minimize = config.task.metric, is_minimized(config.task.metric, config.task.direction)
    with (
        _interruptible(config.name, _flags(workspace)),
        open_view(name=config.name, metric=metric, minimize=minimize, objectives=config.search.objectives) as view,
    ):
        record = search_study(config, workspace=workspace, base=base, listener=view)
    return _finish(_opened(record.name, workspace, None), as_json, workspace)


@app.command(epilog="Example: autocompress resume digits")
def resume(study: StudyName, workspace: Workspace = _WORKSPACE, server: Server = None, as_json: AsJson = False) -> int:
    """Continue an interrupted study with what is left of its budget."""
    if server is not None:
        return _resume_there(server, workspace, study, as_json)
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
        objectives=before.record.objectives,
    )
    with _interruptible(study, _flags(workspace)), view:
        record = resume_study(study, workspace=workspace, listener=view)
    return _finish(_opened(record.name, workspace, None), as_json, workspace)


@app.command(epilog="Example: autocompress cancel digits")
def cancel(study: StudyName, workspace: Workspace = _WORKSPACE, server: Server = None, as_json: AsJson = False) -> None:
    """Ask a running search to end.

    What it found stays, and it can be resumed.
    """
    from autocompress.api import open_study
    from autocompress.records import StudyState
    from autocompress.study.store import StudyStore

    if server is not None:
        client = _client(server, workspace)
        summary = client.study(study)
        running, state = summary["state"] in ("queued", "running", "finalising"), summary["state"]
        if running:
            client.post(f"/studies/{summary['id']}/cancel")
    else:
        state = open_study(study, workspace).record.state
        running = state is StudyState.RUNNING
    if running and server is None:
        with StudyStore(workspace) as store:
            store.request_cancel(study)
    text = f"asked {study} to end" if running else f"{study} is not running, it is {state}; nothing to cancel"
    _print({"study": study, "state": str(state), "cancel_requested": running}, as_json, text)


# -- looking at results


@app.command("list", epilog="Example: autocompress list --json")
def list_studies(workspace: Workspace = _WORKSPACE, server: Server = None, as_json: AsJson = False) -> None:
    """List the studies of the workspace."""
    rows = _study_rows(workspace) if server is None else _study_rows_there(server, workspace)
    if as_json:
        _print_json({"workspace" if server is None else "server": str(server or workspace), "studies": rows})
    elif rows:
        from autocompress.terminal import print_studies

        print_studies(rows)
    else:
        typer.echo(f"no studies yet in {server or workspace}; start one with `autocompress search`", err=True)


@app.command(epilog="Example: autocompress show digits --trial 17")
def show(
    study: StudyName,
    trial: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Show this trial instead of the study.")
    ] = None,
    workspace: Workspace = _WORKSPACE,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Show a study, or one of its trials.

    Configuration, groups and blocks, what was left alone and why, how the trials ended, and where the budget went.
    """
    owner = None
    if server is not None:
        from autocompress.service.remote import RemoteStudy

        there = RemoteStudy(_client(server, workspace), study)
        record, counts = there.record, Counter(there.detail["trials"])
        trials = there.trials if trial is None else [there.trial(trial)]
    else:
        from autocompress.study.store import StudyStore

        with StudyStore(workspace, readonly=True) as store:
            record = store.study(study)
            trials = store.trials(study) if trial is None else [store.trial(study, trial)]
            counts = Counter({state.value: count for state, count in store.counts(study).items()})
            owner = store.owner(study)
    counts.pop("total", None)
    if as_json and trial is None:
        _print_json({"study": record.to_dict(), "trials": _counted(counts), "pid": owner})
    elif as_json:
        _print_json({"study": study, "trial": trials[0].to_dict()})
    else:
        from autocompress.terminal import print_study, print_trial

        print_study(record, trials) if trial is None else print_trial(record, trials[0])


@app.command(epilog="Example: autocompress front digits --json")
def front(study: StudyName, workspace: Workspace = _WORKSPACE, server: Server = None, as_json: AsJson = False) -> None:
    """Show the Pareto front of a study, also while it runs."""
    _print_result(_opened(study, workspace, server), as_json, workspace, server)


@app.command(epilog="Example: autocompress export digits --pick fast --max-drop 0.01 --out digits-bundle")
def export(
    study: StudyName,
    pick: Annotated[str, typer.Option(help="knee, accurate, small, fast or trial:N.")] = "knee",
    max_drop: Annotated[float | None, typer.Option(help="Largest loss of the metric; 0.01 is one point.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest file: 50kB.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Largest latency in milliseconds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; STUDY-bundle by default.")] = None,
    workspace: Workspace = _WORKSPACE,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Take one model away as a bundle.

    The measured file, its card and what is needed to run it.

    Limits that are not given are those of the study, except for trial:N.
    """
    from autocompress.front.choose import bounds_of

    result = _opened(study, workspace, server)
    limits = {"max_drop": max_drop, "max_size": max_size, "max_latency": max_latency}
    limits = {key: value for key, value in limits.items() if value is not None}
    own = {} if pick.startswith("trial:") else bounds_of(result.record)
    folder = out or Path(f"{study}-bundle")
    if server is not None:
        from autocompress.service.remote import RemoteStudy
        from autocompress.service.remote import export as export_there

        assert isinstance(result, RemoteStudy)
        trial = export_there(result, {"pick": pick, **own, **limits}, folder)
    else:
        choice = result.best(pick=pick, **{**own, **limits})
        choice.export(folder)
        trial = choice.point.trial
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    document = {"study": study, "trial": trial, "out": str(folder), "files": files}
    _print(document, as_json, f"trial {trial} is in {folder}: {', '.join(files)}")


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


# -- the service


@app.command(epilog="Example: autocompress serve --port 8765")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="Name by which other machines call this server."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let study files of clients name code and paths of this machine.")
    ] = False,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1000, help="Searches side by side, each on another device.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of one search; by default, searches share 80 % of the machine's."),
    ] = None,
    workspace: Workspace = _WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Serve the workspace: a queue of searches, and the dashboard.

    Prints the address that lets a browser in; programs use the REST interface.

    Ctrl-C ends it; searches that run go on with the next start.
    """
    with _extra("serve"):
        from autocompress.service.app import serve as run_server
        from autocompress.service.settings import Settings, default_memory_bytes, default_parallel
    side_by_side = parallel or default_parallel()
    settings = Settings(
        workspace=workspace.absolute(),
        host=host,
        port=port,
        allowed_hosts=tuple(allowed_hosts or ()),
        allow_code=allow_code,
        parallel=side_by_side,
        max_memory_bytes=_memory(max_memory) or default_memory_bytes(side_by_side),
    )
    run_server(settings, ready=lambda url: _print({"url": url}, as_json, f"open {url}"))


# -- the machine and study files


@app.command(epilog="Example: autocompress devices --json")
def devices(workspace: Workspace = _WORKSPACE, server: Server = None, as_json: AsJson = False) -> None:
    """List the devices on which latency can be measured."""
    from autocompress.doctor import devices as local_devices

    found = local_devices() if server is None else _client(server, workspace).get("/devices")["items"]
    lines = [f"{d['name']}  {d['runtime']} {d['version']}  {d['processor']}, {d['cores']} cores" for d in found]
    _print({"devices": found}, as_json, "\n".join(lines) or "no runtime is installed; `pip install onnxruntime`")


@app.command(epilog="Example: autocompress doctor --workspace runs")
def doctor(workspace: Workspace = _WORKSPACE, as_json: AsJson = False) -> int:
    """Check this machine and the workspace.

    Versions, cores, database mode, and how steadily this machine computes.
    """
    from autocompress.doctor import examine

    checks = examine(workspace)
    ok = all(check.ok for check in checks)
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.check}: {check.found}" for check in checks]
    _print({"checks": [asdict(check) for check in checks], "ok": ok}, as_json, "\n".join(lines))
    return 0 if ok else UsageError.exit_code


@app.command(epilog="Example: autocompress init study.toml")
def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File to write.")] = Path("study.toml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented study file with every key and its default."""
    from autocompress.study_file import study_template

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


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """What a missing optional library is called, and how it is installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "autocompress":
            raise
        raise UsageError(
            f"this needs {error.name}, which is not installed; `pip install 'autocompress[{name}]'` brings it"
        ) from error


@contextlib.contextmanager
def _interruptible(name: str, flags: str = "") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the search in order; the way to continue it is printed."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"interrupted; continue with `autocompress resume {name}{flags}`", INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _opened(study: str, workspace: Path, server: str | None) -> StudyResult:
    """A study of the workspace or of a server."""
    if server is not None:
        from autocompress.service.remote import RemoteStudy

        return RemoteStudy(_client(server, workspace), study)
    from autocompress.api import open_study

    return open_study(study, workspace)


def _flags(workspace: Path, server: str | None = None) -> str:
    """With which a printed command finds what this one found; nothing in the default workspace."""
    there = f" --server {shlex.quote(server)}" if server is not None else ""
    return there if workspace == _WORKSPACE else f"{there} --workspace {shlex.quote(str(workspace))}"


def _print_result(result: StudyResult, as_json: bool, workspace: Path, server: str | None = None) -> None:
    if as_json:
        _print_json(result.document())
    else:
        from autocompress.terminal import print_front

        print_front(result.record, result.front, flags=_flags(workspace, server), local=server is None)


def _finish(result: StudyResult, as_json: bool, workspace: Path, server: str | None = None) -> int:
    """Print what a search found; the exit code says whether it ended, and whether the constraints are met."""
    from autocompress.records import StudyState

    record, flags = result.record, _flags(workspace, server)
    _print_result(result, as_json, workspace, server)
    if record.state is StudyState.INTERRUPTED:
        return _fail(f"interrupted; continue with `autocompress resume {record.name}{flags}`", INTERRUPTED)
    if record.state is StudyState.FAILED:
        said = f"study {record.name!r} failed; `autocompress show {record.name}{flags}` says why"
        return _fail(record.message or said, 1)
    if record.message:  # finished, but earlier than the budget: say why
        typer.echo(record.message, err=True)
    from autocompress.front.choose import bounds_of

    if limits := bounds_of(record):
        try:
            result.best(**limits)
        except ConstraintError as error:
            return _fail(str(error), error.exit_code)
    return 0


# -- over a server


def _client(server: str, workspace: Path) -> Client:
    from autocompress.service.client import Client

    return Client(server, workspace=workspace)


def _search_there(
    server: str,
    workspace: Path,
    study: str,
    overrides: list[str],
    name: str | None,
    flags: dict[str, Any],
    as_json: bool,
) -> int:
    from autocompress.service.remote import start
    from autocompress.study_file import environment_overrides

    client = _client(server, workspace)
    every = [*environment_overrides(os.environ), *overrides]
    summary = start(client, study, overrides=every, name=name, flags=flags)
    return _follow(client, server, workspace, summary, as_json)


def _resume_there(server: str, workspace: Path, study: str, as_json: bool) -> int:
    from autocompress.service.remote import RemoteStudy

    client = _client(server, workspace)
    before = RemoteStudy(client, study)
    trials = before.front_trials if before.detail["record"] else []
    summary = client.post(f"/studies/{before.id}/resume")
    return _follow(client, server, workspace, summary, as_json, trials)


def _follow(
    client: Client,
    server: str,
    workspace: Path,
    summary: dict[str, Any],
    as_json: bool,
    trials: Sequence[TrialRecord] = (),
) -> int:
    """Show a search of a server until it is over; leaving it does not end it.

    Args:
        trials: of the front so far, for one that goes on.
    """
    from autocompress.config import is_minimized
    from autocompress.service.remote import RemoteStudy, follow
    from autocompress.terminal import open_view

    name, config = summary["study"], client.get(f"/studies/{summary['id']}")["config"]
    metric, minimize = config["task"]["metric"], is_minimized(config["task"]["metric"], config["task"]["direction"])
    objectives, flags = config["search"]["objectives"], _flags(workspace, server)
    view = open_view(name=name, metric=metric, minimize=minimize, trials=trials, objectives=objectives)
    try:
        with view:
            summary = follow(client, summary["id"], view)
    except KeyboardInterrupt:
        text = f"the search goes on; watch it with `autocompress front {name}{flags}`"
        return _fail(f"{text}, end it with `autocompress cancel {name}{flags}`", INTERRUPTED)
    failure = summary.get("exit_code") or UsageError.exit_code  # an older server does not say
    if summary["record"] is None:
        text = summary["error"] or f"cancelled; continue with `autocompress resume {name}{flags}`"
        return _fail(text, failure if summary["state"] == "failed" else INTERRUPTED)
    code = _finish(RemoteStudy(client, name), as_json, workspace, server)
    return summary.get("exit_code") or code


def _study_rows_there(server: str, workspace: Path) -> list[dict[str, Any]]:
    keys = ("study", "state", "created", "budget_s", "spent_s", "trials")
    rows = [{key: entry[key] for key in keys} for entry in _client(server, workspace).studies()]
    return rows[::-1]


def _memory(text: str | None) -> int | None:
    from autocompress.config import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--max-memory: {error}") from error


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


# -- printing


def _print(document: Mapping[str, Any], as_json: bool, text: str) -> None:
    _print_json(document) if as_json else typer.echo(text)


def _print_json(document: Any, *, indent: int | None = None) -> None:
    from autocompress.records import finite

    typer.echo(json.dumps(finite(document), indent=indent, allow_nan=False))


def _message(error: Exception) -> str:
    message: Callable[[], str] | None = getattr(error, "format_message", None)
    return (message() if message else str(error)).rstrip(".")


def _as_setting(error: Exception) -> str:
    """How an option that does not exist is given, where it is a value of a study file: --max-size as --set."""
    from autocompress.config import tables_with

    key = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
    found = [f"--set {table}.{key}=VALUE" for table in tables_with(key)]
    return f"a study is searched with it by {' or '.join(found)}; " if found else ""


def _fail(text: str, code: int) -> int:
    typer.echo(f"error: {text}" if code != INTERRUPTED else text, err=True)
    return code
