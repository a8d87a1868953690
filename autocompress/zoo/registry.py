"""The built-in networks for somebody who has no torch loaded: their arguments, and the shapes of their weights.

    python -m autocompress.zoo.registry arguments
    python -m autocompress.zoo.registry shapes resnet20 '{"classes": 10}'

Prints one JSON document. The server asks in a process of its own, which a wrong argument cannot hurt.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import torch

from autocompress.zoo.factory import BUILTIN_MODELS

_KINDS = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}


def arguments() -> dict[str, dict[str, Any]]:
    """JSON Schema of the arguments of every built-in network; arguments of other kinds are left out."""
    return {name: _schema(factory) for name, factory in BUILTIN_MODELS.items()}


def shapes(name: str, args: dict[str, Any]) -> dict[str, list[int]]:
    """Shape of every tensor of a network's state dict, found without any memory for them."""
    with torch.device("meta"):
        model = BUILTIN_MODELS[name](**args)
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def _schema(factory: Any) -> dict[str, Any]:
    properties = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        kind = _KINDS.get(str(parameter.annotation))
        if kind is None:
            continue
        entry: dict[str, Any] = {"type": kind}
        if parameter.default is not parameter.empty:
            entry["default"] = parameter.default
        if kind == "integer":
            entry |= {"minimum": 1, "maximum": 10_000}
        properties[name] = entry
    required = [name for name, entry in properties.items() if "default" not in entry]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def main() -> int:
    """Answer one question."""
    what, *rest = sys.argv[1:]
    print(json.dumps(arguments() if what == "arguments" else shapes(rest[0], json.loads(rest[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
