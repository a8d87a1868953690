"""Study files: finding one, what changes its values from outside, and a template of one.

What a study file may contain is in `config.py`; this knows where it comes from.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from autocompress.api import study_names
from autocompress.config import StudyConfig, load_config, read_toml
from autocompress.errors import NotFoundError, UsageError
from autocompress.resources import resource

if TYPE_CHECKING:
    from pydantic import BaseModel

_ENVIRONMENT = "AUTOCOMPRESS_"
# Values shown for keys that have no default, in the template.
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


def find_study(study: str, *, overrides: Sequence[str], workspace: Path) -> tuple[StudyConfig, Path | None]:
    """The resolved configuration of a built-in study or a file, and the folder that its paths are relative to.

    Args:
        study: name of a built-in, or path of a TOML file.
        overrides: "table.key=value" texts; a later one wins.
        workspace: whose studies are named where an unknown name looks like one of them.
    Raises:
        NotFoundError: no built-in of this name; the text names the nearest one.
        UsageError: the file cannot be read, or a value in it is wrong.
    """
    builtins = {path.stem: path for path in sorted(resource("studies").glob("*.toml"))}
    is_file = study.endswith(".toml") or os.sep in study
    if not is_file and study not in builtins:
        _refuse(study, sorted(builtins), workspace)
    path = Path(study) if is_file else builtins[study]
    config = load_config(read_toml(path), name=path.stem, overrides=tuple(overrides), origin=str(path))
    return config, path.absolute().parent if is_file else None


def environment_overrides(environment: Mapping[str, str]) -> list[str]:
    """ "search.budget=5m" for AUTOCOMPRESS_SEARCH__BUDGET=5m: above the study file, below `--set`.

    Raises:
        UsageError: a variable names no key of a study file.
    """
    keys = {table: list(model.model_fields) for table, model in _tables().items()}
    found = []
    for variable, value in sorted(environment.items()):
        if not variable.startswith(_ENVIRONMENT) or "__" not in variable:
            continue
        table, _, key = variable.removeprefix(_ENVIRONMENT).lower().partition("__")
        known = keys.get(table)
        if known is None or key not in known:
            pairs = [(table, k) for k in known] if known else [(t, "...") for t in keys]
            names = ", ".join(f"{_ENVIRONMENT}{t.upper()}__{k.upper()}" for t, k in pairs)
            raise UsageError(f"the environment variable {variable} names no key of a study file; known are {names}")
        found.append(f"{table}.{key}={value}")
    return found


def study_template() -> str:
    """A study file with every key, its meaning and its default, made from the schema."""
    lines = [
        "# A study of autocompress. A key with a # before it shows its default, or an example if it has none.",
        *("", '# name = "my-study"  # the name of this file if omitted'),
    ]
    for table, model in _tables().items():
        lines += ["", f"[{table}]  # {(model.__doc__ or '').strip().splitlines()[0].partition(': ')[2]}"]
        for key, entry in model.model_fields.items():
            full = f"{table}.{key}"
            value = _EXAMPLES.get(full, entry.get_default(call_default_factory=True, validated_data={}))
            comment = f"  # {entry.description}" if entry.description else ""
            lines.append(f"{'' if full in _WRITTEN_OUT else '# '}{key} = {toml_value(value)}{comment}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A plain value as it is written in a study file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    return json.dumps(value)


def _tables() -> dict[str, type[BaseModel]]:
    fields = {table: field.annotation for table, field in StudyConfig.model_fields.items() if table != "name"}
    return {table: cast("type[BaseModel]", model) for table, model in fields.items()}


def _refuse(study: str, builtins: list[str], workspace: Path) -> NoReturn:
    known = study_names(workspace)
    if study in known:
        raise UsageError(f"{study!r} is a study of {workspace} already; continue it with `autocompress resume {study}`")
    near = difflib.get_close_matches(study, [*builtins, *known], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}" if near else f"built-in are {', '.join(builtins) or 'none'}"
    raise NotFoundError(f"no built-in study {study!r}; {hint}; for a study file of your own: `autocompress init`")
