"""Weights that clients send: safetensors for a built-in network, and nothing else.

A safetensors file is a table of names, types, shapes and places, and then numbers. The table is read
here with plain `json` and compared with what the network has; nothing is unpickled, and no other format
is opened. A file is named after its own SHA-256, so no name of a client ever reaches the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from autocompress.service.problems import Problem
from autocompress.study.database import Database
from autocompress.study.executors import own_environment

_HEADER = struct.Struct("<Q")
MAX_HEADER_BYTES = 8 << 20
_TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_OTHER_KINDS = (
    (b"PK", "a zip archive, as .pt and .pt2 files are: loading one can run code"),
    (b"\x80", "a pickle, which runs code when it is loaded"),
    (b"\x89HDF", "an HDF5 file"),
)
_MAX_PARAMETERS = 1_000_000_000
_ASK_S = 120.0


class Models:
    """The uploaded weights of a workspace.

    Args:
        keep: how many there may be.
    """

    def __init__(self, workspace: Path, *, keep: int) -> None:
        self.folder, self._keep = workspace / "models", keep
        self._database = Database(workspace.absolute())
        self._lock = threading.Lock()
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob(".upload-*"):  # of a server that was killed
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    @property
    def architectures(self) -> dict[str, Any]:
        """JSON Schema of the arguments of every built-in network; the first time takes seconds."""
        with self._lock:
            return self._architectures

    @cached_property
    def _architectures(self) -> dict[str, Any]:
        found: dict[str, Any] = _ask("arguments")
        return found

    def listed(self) -> list[dict[str, Any]]:
        """Uploaded weights, newest first."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM ac_model ORDER BY created DESC").fetchall()
        return [{**dict(row), "args": json.loads(row["args"])} for row in rows]

    def path(self, identifier: str) -> Path:
        """File of the weights with an id that `ids` holds."""
        return self.folder / f"{identifier}.safetensors"

    def checked_arguments(self, architecture: str, args: Any) -> dict[str, Any]:
        """The arguments of a network, if they are what it takes.

        Raises:
            Problem: no such network, or what is wrong with which argument.
        """
        known = self.architectures
        if architecture not in known:
            detail = f"unknown network {architecture!r}; known are {', '.join(known)}"
            raise Problem(422, detail, errors=[("architecture", detail)])
        if not isinstance(args, dict):
            raise Problem(422, "args must be a JSON object", errors=[("args", "must be a JSON object")])
        schema = known[architecture]
        errors = [(f"args.{name}", _misfit(args[name], schema["properties"].get(name))) for name in args]
        errors += [(f"args.{name}", "is needed") for name in schema["required"] if name not in args]
        wrong = [(name, text) for name, text in errors if text]
        if wrong:
            raise Problem(422, f"{wrong[0][0]}: {wrong[0][1]}", errors=wrong)
        return args

    async def receive(self, chunks: AsyncIterator[bytes]) -> Path:
        """Write an upload to a file of its own; the caller moves or removes it."""
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".upload-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                first = True
                async for chunk in chunks:
                    if first and chunk:
                        _refuse_other_kinds(chunk)
                        first = False
                    file.write(chunk)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def add(self, file: Path, *, architecture: str, args: dict[str, Any], actor: str) -> tuple[dict[str, Any], bool]:
        """Check received weights and keep them.

        Returns:
            What is known of them, and whether they are new.
        Raises:
            Problem: no safetensors file, or it does not fit the network; the file is removed.
        """
        try:
            with file.open("rb") as content:
                header = read_header(content, file.stat().st_size)
            check_tensors(header, _ask("shapes", architecture, json.dumps(args)))
            identity = json.dumps([architecture, args], sort_keys=True).encode()
            identifier = hashlib.sha256(_digest(file).encode() + identity).hexdigest()
            return self._keep_file(file, identifier, architecture, args, len(header), actor)
        finally:
            file.unlink(missing_ok=True)

    def _keep_file(
        self, file: Path, identifier: str, architecture: str, args: dict[str, Any], tensors: int, actor: str
    ) -> tuple[dict[str, Any], bool]:
        size = file.stat().st_size
        with self._database.write() as connection:
            known = connection.execute("SELECT 1 FROM ac_model WHERE id = ?", (identifier,)).fetchone()
            count = connection.execute("SELECT count(*) FROM ac_model").fetchone()[0]
            if not known and count >= self._keep:
                raise Problem(429, f"{count} models are stored already, the most that this server keeps")
            file.rename(self.path(identifier))
            connection.execute(
                "INSERT OR IGNORE INTO ac_model (id, architecture, args, size_bytes, tensors, actor, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (identifier, architecture, json.dumps(args), size, tensors, actor, time.time()),
            )
        return next(entry for entry in self.listed() if entry["id"] == identifier), known is None


def read_header(file: BinaryIO, size: int) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor of a safetensors file, after its places were checked.

    Args:
        size: bytes of the whole file.
    Raises:
        Problem: it is no such file, or its table does not fit its size.
    """
    start = file.read(_HEADER.size)
    _refuse_other_kinds(start)
    length = _HEADER.unpack(start)[0] if len(start) == _HEADER.size else 0
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - _HEADER.size):
        raise Problem(422, "this is not a safetensors file; save the state dict with safetensors.torch.save_file")
    try:
        table = json.loads(file.read(length), object_pairs_hook=_unique)
        table.pop("__metadata__", None)
        entries = {name: _entry(entry) for name, entry in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Problem(422, f"the table of the safetensors file is damaged: {str(error)[:200]}") from error
    end = 0
    for begin, stop in sorted(place for _, _, place in entries.values()):
        if begin != end:
            raise Problem(422, "the tensors of the safetensors file overlap or leave gaps")
        end = stop
    if _HEADER.size + length + end != size:
        raise Problem(422, "the safetensors file is cut off or has something behind its end")
    return {name: (kind, shape) for name, (kind, shape, _) in entries.items()}


def check_tensors(found: Mapping[str, tuple[str, list[int]]], wanted: Mapping[str, list[int]]) -> None:
    """Compare the tensors of a file with those of a network.

    Raises:
        Problem: the first that is missing, unknown or of another shape.
    """
    if sum(math.prod(shape) for shape in wanted.values()) > _MAX_PARAMETERS:
        raise Problem(422, f"a network may have at most {_MAX_PARAMETERS} parameters here")
    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    if missing:
        raise Problem(422, f"the weights do not fit: {missing[0]!r} is missing ({len(missing)} of {len(wanted)} are)")
    extra = [name for name in found if name not in wanted]
    if extra:
        raise Problem(422, f"the weights do not fit: the network has no {extra[0][:200]!r}")
    for name, (_, shape) in found.items():
        if shape != wanted[name]:
            raise Problem(422, f"the weights do not fit: {name!r} must have the shape {wanted[name]}, got {shape}")


def _entry(entry: Any) -> tuple[str, list[int], tuple[int, int]]:
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in _TYPES:
        raise ValueError(f"tensors of type {str(kind)[:20]!r} are not taken")
    numbers = [*shape, begin, end]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or len(shape) > 8:
        raise ValueError("a shape or a place is no plain number")
    if math.prod(shape) * _TYPES[kind] != end - begin:
        raise ValueError("a tensor has not the bytes of its shape")
    return kind, list(shape), (begin, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _refuse_other_kinds(start: bytes) -> None:
    for mark, what in _OTHER_KINDS:
        if start.startswith(mark):
            raise Problem(415, f"this is {what}; only safetensors files are taken")


def _misfit(value: Any, schema: Mapping[str, Any] | None) -> str:
    if schema is None:
        return "the network takes no such argument"
    kinds = {"integer": (int,), "number": (int, float), "boolean": (bool,), "string": (str,)}[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return f"must be of type {schema['type']}"
    if schema["type"] == "integer" and not schema["minimum"] <= value <= schema["maximum"]:
        return f"must be from {schema['minimum']} to {schema['maximum']}"
    return "is too long" if isinstance(value, str) and len(value) > 100 else ""


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _ask(*question: str) -> Any:
    """What a process with torch says about the built-in networks."""
    environment = own_environment()
    environment.pop("AUTOCOMPRESS_TOKEN", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "autocompress.zoo.registry", *question],
            capture_output=True, text=True, timeout=_ASK_S, check=True, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Problem(503, "the networks could not be looked at in time; try again") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise Problem(422, f"the network cannot be built with these arguments: {last[:200]}") from error
    return json.loads(done.stdout)
