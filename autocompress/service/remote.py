"""What `--server` puts in the place of the workspace: the same studies, asked for over HTTP.

A `RemoteStudy` can stand wherever the command line has a `StudyResult`. Needs no extra library.
"""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from autocompress.api import StudyResult
from autocompress.config import parse_override, read_toml
from autocompress.errors import AutocompressError, ConstraintError, NotFoundError, ServerError, UsageError
from autocompress.records import FrontPoint, Progress, StudyRecord, StudyState, TrialRecord
from autocompress.service.client import Client

Tell = Callable[[Progress | TrialRecord], None]
_POLL_S = 0.3
_UPLOADED = "model:"
# What the server's error was, by the exit code that it tells of it.
_KINDS: dict[int | None, type[AutocompressError]] = {
    1: AutocompressError, 2: UsageError, 3: ConstraintError, 4: NotFoundError, 5: ServerError,
}  # fmt: skip


class RemoteStudy(StudyResult):
    """A study of a server as it stands now; every property is asked for once, on first use.

    Raises:
        NotFoundError: the server has no study of this name.
    """

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(name, ".")
        self.client = client
        self.id: str = client.study(name)["id"]

    @cached_property
    def detail(self) -> dict[str, Any]:
        """Everything that the server says of the study itself."""
        found: dict[str, Any] = self.client.get(f"/studies/{self.id}")
        return found

    @cached_property
    def record(self) -> StudyRecord:
        if self.detail["record"] is None:
            position, error = (self.detail["job"] or {}).get("position"), self.detail["error"]
            more = f", at place {position} of the queue" if position else f": {error}" if error else ""
            raise UsageError(f"study {self.name!r} is {self.detail['state']}{more}")
        record, state = StudyRecord.from_dict(self.detail["record"]), self.detail["state"]
        if state == "failed":  # its server may have ended it, of which the study itself knows nothing
            return replace(record, state=StudyState.FAILED, message=self.detail["error"] or record.message)
        return replace(record, state=StudyState.INTERRUPTED) if state == "cancelled" else record

    @cached_property
    def trials(self) -> list[TrialRecord]:
        return [TrialRecord.from_dict(row) for row in self.client.trials(self.id)]

    @cached_property
    def front_trials(self) -> list[TrialRecord]:
        chosen = {point.trial for point in self.front}
        return [trial for trial in self.trials if trial.trial in chosen]

    @cached_property
    def front(self) -> list[FrontPoint]:
        return [FrontPoint.from_dict(entry) for entry in self._front_document["front"]]

    def document(self) -> dict[str, Any]:
        return self._front_document

    def trial(self, number: int) -> TrialRecord:
        """One trial, without its learning curve.

        Raises:
            NotFoundError: the study has no such trial.
        """
        known = 0 <= number < 2**31  # as the server takes them
        found = self.client.get(f"/studies/{self.id}/trials", after=number - 1, limit=1)["items"] if known else []
        if not found or found[0]["trial"] != number:
            raise NotFoundError(
                f"study {self.name!r} has no trial {number}; `autocompress show {self.name}` counts them"
            )
        return TrialRecord.from_dict(found[0])

    @cached_property
    def _front_document(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/studies/{self.id}/front")
        return found


def start(
    client: Client, study: str, *, overrides: Sequence[str], name: str | None, flags: dict[str, Any]
) -> dict[str, Any]:
    """Ask a server for a search; weights that the study file names are uploaded first.

    Args:
        study: name of a built-in, or path of a TOML file on this machine.
        flags: budget, seed and max_trials.
    Returns:
        Its summary.
    """
    given = [parse_override(text) for text in overrides]
    body: dict[str, Any] = {"set": {f"{table}.{field}": value for table, field, value in given}}
    body |= {key: value for key, value in {**flags, "name": name}.items() if value is not None}
    if study.endswith(".toml") or "/" in study:
        path = Path(study)
        body["study_file"] = _study_text(path)
        tables = read_toml(path)
        if weights := _upload(client, path, tables, body["set"]):
            body["set"]["model.weights"] = weights
        body.setdefault("name", tables.get("name") or path.stem)
    else:
        body["builtin"] = study
        body.setdefault("name", study)
    summary: dict[str, Any] = client.post("/studies", body)
    return summary


def follow(client: Client, study_id: str, tell: Tell) -> dict[str, Any]:
    """Tell what happens to a study until it is over; its last summary."""
    for kind, data in client.follow(study_id):
        if kind == "trial":
            tell(TrialRecord.from_dict(data["trial"]))
        elif kind == "state":
            tell(_progress(data))
    summary: dict[str, Any] = client.get(f"/studies/{study_id}")
    return summary


def export(study: RemoteStudy, spec: dict[str, Any], out: Path) -> int:
    """Have a bundle made and write it to a folder; the trial that it is of.

    Raises:
        UsageError: the folder has something in it, or cannot be written.
        NotFoundError: the trial is not on the front.
        ConstraintError: no artifact meets the limits.
    """
    from autocompress.bundle import check_target, new_folder

    check_target(out)
    asked = study.client.post(f"/studies/{study.id}/exports", spec)
    while asked["state"] == "queued":
        time.sleep(_POLL_S)
        asked = study.client.get(f"/exports/{asked['id']}")
    if asked["state"] != "done":
        raise _KINDS.get(asked.get("exit_code"), UsageError)(str(asked["error"]))
    with new_folder(out) as folder, tempfile.TemporaryFile() as archive:
        study.client.download(f"/exports/{asked['id']}/file", archive)
        _unpack(archive, folder)
    return int(asked["trial"])


def _unpack(archive: IO[bytes], folder: Path) -> None:
    """What is in the one folder of an archive; zipfile itself keeps every name inside."""
    with tempfile.TemporaryDirectory(dir=folder) as whole:
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(whole)
        except zipfile.BadZipFile as error:
            raise ServerError(f"the bundle arrived damaged ({error}); try again") from error
        (bundle,) = Path(whole).iterdir()
        for path in list(bundle.iterdir()):
            path.rename(folder / path.name)


def _study_text(path: Path) -> str:
    read_toml(path)  # says in a sentence what is wrong with it
    return path.read_text(encoding="utf-8")


def _upload(client: Client, path: Path, tables: dict[str, Any], changes: dict[str, Any]) -> str | None:
    """Send the weights that a study file names; what the server calls them."""
    model = tables.get("model", {})
    model = {**model, **{key.removeprefix("model."): v for key, v in changes.items() if key.startswith("model.")}}
    weights = model.get("weights")
    if not isinstance(weights, str) or weights.startswith(_UPLOADED):
        return None
    file = path.parent / weights
    if file.suffix != ".safetensors":
        raise UsageError(f"a server takes weights as .safetensors only, got {weights}; save them with safetensors")
    try:
        with file.open("rb") as content:
            args = json.dumps(model.get("args", {}))
            size = file.stat().st_size
            sent = client.upload(content, size=size, architecture=str(model.get("factory", "")), args=args)
    except OSError as error:
        raise UsageError(f"cannot read the weights {file}: {error.strerror}; check model.weights") from error
    return str(sent["weights"])


def _progress(summary: dict[str, Any]) -> Progress:
    state, job = summary["state"], summary["job"] or {}
    stage = summary["stage"] if state == "running" and summary["stage"] else state
    message = f"at place {job['position']} of the queue" if job.get("position") else "on the server"
    return Progress(stage=stage, message=message, spent_s=summary["spent_s"], budget_s=summary["budget_s"])
