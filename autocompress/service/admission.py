"""From what a client asks for to the study that runs: a built-in or a study file, checked before it waits.

Over HTTP a study may name only what this program brings: its networks, its data sets, its metrics, and
weights that were uploaded. Anything else would be code or a path chosen by the client, and is refused
unless the server was started with --allow-code.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from autocompress.config import (
    BUILTIN_METRICS,
    ModelConfig,
    SearchConfig,
    SpaceConfig,
    StudyConfig,
    TeacherNetwork,
    is_builtin_metric,
)
from autocompress.doctor import devices
from autocompress.records import TrialRecord
from autocompress.resources import resource
from autocompress.service.problems import Problem
from autocompress.service.settings import Settings
from autocompress.service.uploads import Models
from autocompress.study.store import STUDY_NAME

MAX_FILE_CHARS = 64_000
MAX_DOTS = 64
DATA_SETS = ("digits", "placed_digits", "fashion_mnist", "cifar10", "languages", "diabetes")  # those that take no path
_BITS = (2, 3, 4, 8, 16, 32)
UPLOADED = "model:"
# Keys that hold numbers, switches, or names out of a list of our own; the others are looked at one by one below.
_HARMLESS: dict[str, tuple[str, ...]] = {
    "model": ("factory", "args", "weights", "epochs", "learning_rate"),
    "teacher": ("networks", "with_model"),
    "data": ("factory", "augment", "val_share", "test_share", "max_val"),
    "task": ("metric", "direction", "kind"),
    "device": ("name", "runtime", "threads", "batch"),
    "space": tuple(SpaceConfig.model_fields),
    "search": tuple(SearchConfig.model_fields),
}
Network = TypeVar("Network", ModelConfig, TeacherNetwork)
MAX_ARGUMENT = 10_000
_ARGUMENT = f"over HTTP, an argument of a network is a number up to {MAX_ARGUMENT}, true, false or a short text"
_CODE = "it would run code or read a path that the client chose; start the server with --allow-code to permit that"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A search that somebody asked for, before it has a name of its own."""

    tables: dict[str, Any]
    name: str
    named: bool


def builtin_studies() -> dict[str, dict[str, Any]]:
    """The tables of every built-in study, by name."""
    paths = sorted(resource("studies").glob("*.toml"))
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in paths}


def parse_study_file(text: str) -> dict[str, Any]:
    """The tables of a study file that a client sent.

    Raises:
        Problem: too long, no TOML, or nested deeper than anybody writes.
    """
    if len(text) > MAX_FILE_CHARS:
        raise Problem(413, f"a study file may have at most {MAX_FILE_CHARS} characters, got {len(text)}")
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):  # tomllib takes minutes for a key of 20,000 parts
        detail = f"a line of the study file has more than {MAX_DOTS} dots"
        raise Problem(422, detail, errors=[("study_file", detail)])
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise Problem(
            422, "the study file is nested too deeply", errors=[("study_file", "nested too deeply")]
        ) from error
    except ValueError as error:  # TOML that is none, and numbers of thousands of digits
        detail = str(error)[:300]
        raise Problem(422, f"this is not a TOML file: {detail}", errors=[("study_file", detail)]) from error


def with_settings(tables: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with single values changed.

    Args:
        settings: values by dotted key, "search.budget".
    """
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tables.items()}
    for key, value in settings.items():
        table, dot, field = key.partition(".")
        target = merged.setdefault(table, {}) if dot and table in StudyConfig.model_fields else None
        if not isinstance(target, dict) or not field or "." in field:
            raise Problem(422, f"unknown key {key!r}; keys look like search.budget", errors=[(key, "unknown key")])
        target[field] = value
    return merged


def validated(tables: Mapping[str, Any], *, name: str) -> StudyConfig:
    """The configuration of a study; every wrong value is named with its key.

    Raises:
        Problem: what is wrong, per field.
    """
    if not STUDY_NAME.fullmatch(name):
        detail = "letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit"
        raise Problem(422, f"a study's name is {detail}", errors=[("name", detail)])
    try:
        config = StudyConfig.model_validate({**tables, "name": name})
        json.dumps(config.model_dump(mode="json"))
    except ValidationError as error:
        errors = [_wrong(entry) for entry in error.errors()[:20]]
        raise Problem(422, f"{errors[0][0]}: {errors[0][1]}", errors=errors) from error
    except (RecursionError, ValueError) as error:  # deeper, or numbers longer, than JSON can say
        raise Problem(422, f"the study file cannot be stored: {str(error)[:200]}") from error
    return config


def admit(config: StudyConfig, settings: Settings, *, models: Models) -> StudyConfig:
    """The same study with uploaded weights in place of their ids, if a client may ask for it.

    Args:
        models: the uploaded weights.
    Raises:
        Problem: it names code, a path, or more than the server gives; per field.
    """
    refused: list[tuple[str, str]] = []
    if config.search.budget > settings.max_budget_s:
        refused.append(("search.budget", f"at most {settings.max_budget_s:g} seconds on this server"))
    if not settings.allow_code:
        refused += _beyond_data(config)
    known = {entry["id"]: entry for entry in models.listed() if models.path(entry["id"]).is_file()}
    model = _with_weights(config.model, "model", known, models, refused, settings)
    networks = tuple(
        _with_weights(network, f"teacher.networks.{place}", known, models, refused, settings)
        for place, network in enumerate(config.teacher.networks)
    )
    if refused:
        raise Problem(422, f"{refused[0][0]}: {refused[0][1]}", errors=refused)
    teacher = config.teacher.model_copy(update={"networks": networks})
    return config.model_copy(update={"model": model, "teacher": teacher})


def refined(config: StudyConfig, trial: TrialRecord) -> dict[str, Any]:
    """Tables of a search around one trial.

    Its file and its latency are bounds (a tenth above), weights get its bits and the next wider, activations are as
    it has them, and groups are pruned little further than its most pruned one.

    Raises:
        Problem: the trial was not measured.
    """
    measured, plan = trial.measurement, trial.plan
    if (parts := trial.cascade) is not None:
        raise Problem(
            409, f"trial {trial.trial} is two networks in one file; search around trial {parts.first} or {parts.second}"
        )
    if measured is None:
        raise Problem(409, f"trial {trial.trial} was not measured; there is nothing to search around")
    tables: dict[str, Any] = config.model_dump(mode="json")
    space, search = tables["space"], tables["search"]
    if bits := sorted(set(plan.weight_bits.values())):
        wider = [b for b in _BITS if b > bits[-1]][:1]
        space["weight_bits"] = [*bits, *wider]
    space["activations"] = [plan.activations]
    largest = max(plan.prune_ratio.values(), default=0.0)
    space["max_prune_ratio"] = min(space["max_prune_ratio"], round(largest + 0.1, 3))
    if "size" in search["objectives"]:
        search["max_size"] = round(1.1 * measured.size_bytes)
    if "latency" in search["objectives"]:
        search["max_latency"] = round(1.1 * measured.latency.latency_ms, 6)
    return tables


def _beyond_data(config: StudyConfig) -> list[tuple[str, str]]:
    """What of a study is more than data: keys that are not known to be harmless, and what names code or a path.

    A key that a later version adds is refused until somebody has thought about it here.
    """
    refused = []
    default, given = StudyConfig().model_dump(), config.model_dump()
    for table, values in given.items():
        if table == "name":
            continue
        open_keys = _HARMLESS.get(table, ())
        unknown = [key for key in values if key not in open_keys and values[key] != default[table][key]]
        refused += [(f"{table}.{key}", f"cannot be set over HTTP: {_CODE}") for key in unknown]
    refused += _network(config.model.factory, config.model.args, "model")
    for place, network in enumerate(config.teacher.networks):
        refused += _network(network.factory, network.args, f"teacher.networks.{place}")
    if config.data.factory not in DATA_SETS:
        refused.append(("data.factory", f"only {', '.join(DATA_SETS)}: {_CODE}"))
    if not is_builtin_metric(config.task.metric):
        refused.append(("task.metric", f"only {', '.join(BUILTIN_METRICS)}: {_CODE}"))
    if config.device.name not in (names := sorted({str(device["name"]) for device in devices()})):
        refused.append(("device.name", f"this server has {', '.join(names)}"))
    return refused


def _network(factory: str, args: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    refused = [(f"{where}.args.{key}", _ARGUMENT) for key, value in args.items() if not _is_small(value)]
    if ":" in factory and not factory.startswith("torchvision:"):
        refused.append((f"{where}.factory", f"only built-in networks: {_CODE}"))
    return refused


def _is_small(value: Any) -> bool:
    if isinstance(value, bool | float):
        return True
    if isinstance(value, int):
        return 0 <= value <= MAX_ARGUMENT
    return isinstance(value, str) and len(value) <= 40


def _with_weights(
    network: Network,
    where: str,
    known: Mapping[str, Mapping[str, Any]],
    models: Models,
    refused: list[tuple[str, str]],
    settings: Settings,
) -> Network:
    """The same network with the path of its uploaded weights in place of their id."""
    weights, field = network.weights, f"{where}.weights"
    if weights is None:
        return network
    if not weights.startswith(UPLOADED):
        if not settings.allow_code:
            refused.append((field, f'"{UPLOADED}ID" of an uploaded model, or nothing: {_CODE}'))
        return network
    identifier = weights.removeprefix(UPLOADED)
    if (entry := known.get(identifier)) is None:
        refused.append((field, "no such uploaded model; POST /api/v1/models takes one"))
        return network
    if (entry["architecture"], entry["args"]) != (network.factory, network.args):
        refused.append((field, f"these weights are of {entry['architecture']} with {entry['args']}"))
    return network.model_copy(update={"weights": str(models.path(identifier))})


def _wrong(entry: Mapping[str, Any]) -> tuple[str, str]:
    field = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return field, "unknown key; GET /api/v1/schema has the known ones"
    return field, str(entry["msg"]).removeprefix("Value error, ")[:300]
