"""Keeps the README true: prints the tree and the verbs from the code, between its markers.

`python docs/readme.py` rewrites the README (`make docs`); `tests/test_docs.py` fails when that would change it.
It imports the command line, and reads everything else as text.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_FIRST_WIDTH = 30  # of the tree's names; what a file or folder is for comes after it
_LINE = 118
_FILES_OF_ROOT = (
    ("pyproject.toml  README.md  CHANGELOG.md  LICENSE", ""),
    ("Makefile  .ci/run", "the habits, and what the build server runs"),
)
_FOLDERS_OF_ROOT = (
    ("studies/", "the built-in studies, one TOML file each, and the benchmark of the search; shipped in the wheel"),
    ("dashboards/", "the pages: templates, scripts and styles of the service and of the report; shipped in the wheel"),
    (
        "docs/",
        "a tour of the dashboard, the table of architectures, the pictures, and what prints them",
    ),
    ("tests/", "as the package, and bench/: scripts that time it"),
)
# The flow of the design; a folder that is not named here comes last.
_STAGES = ("zoo", "space", "compress", "recover", "export", "measure", "search", "study", "front", "service")


def tree(root: Path = ROOT) -> str:
    """The tree: every module at the top with what it is for, every stage with its modules."""
    package = root / "autocompress"
    lines = [_row(name, text) for name, text in _FILES_OF_ROOT]
    lines.append("autocompress/")
    for path in sorted(package.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            lines.append(_row(f"  {path.name}", _first_words(path)))
    folders = [p.name for p in package.iterdir() if (p / "__init__.py").is_file()]
    for name in sorted(folders, key=lambda n: (_STAGES.index(n) if n in _STAGES else len(_STAGES), n)):
        lines.append(_row(f"  {name}/", _first_words(package / name / "__init__.py")))
        modules = sorted(p.name for p in (package / name).glob("*.py") if p.name != "__init__.py")
        lines += _wrapped(modules, indent=4)
    lines += [_row(name, text) for name, text in _FOLDERS_OF_ROOT if (root / name).is_dir()]
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def verbs() -> str:
    """A table of the verbs: arguments, flags, and what each does."""
    rows = ["| verb | flags | what it does |", "|---|---|---|"]
    for name, function in _commands().items():
        arguments, flags = _parameters(function)
        what = " ".join((inspect.getdoc(function) or "").split())
        rows.append(f"| `{' '.join([name, *arguments])}` | {', '.join(flags)} | {what} |")
    return "\n".join(rows)


def rewritten(text: str) -> str:
    """The text of a README with its regions printed anew.

    Raises:
        ValueError: a region has no markers.
    """
    for name, content in (("tree", tree()), ("verbs", verbs())):
        region = re.compile(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not region.search(text):
            raise ValueError(f"README.md has no region <!-- {name} --> ... <!-- /{name} -->")
        text = region.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def _commands() -> dict[str, Callable[..., Any]]:
    from autocompress.cli import app

    return {c.name or c.callback.__name__: c.callback for c in app.registered_commands if c.callback}


def _parameters(function: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """Arguments and flags as they are typed, from the annotations alone."""
    arguments, flags = [], []
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])
        if type(info).__name__ == "ArgumentInfo":
            shown = info.metavar or name.upper()
            arguments.append(shown if parameter.default is parameter.empty else f"[{shown}]")
        else:
            # typer takes the first name for a default when it stands in an annotation
            named = [d for d in (info.default, *(info.param_decls or ())) if str(d).startswith("--")]
            flag = next(iter(named), f"--{name.replace('_', '-')}")
            value = "" if kind is bool else f" {info.metavar or _placeholder(kind)}"
            flags.append(f"`{flag}{value}`")
    return arguments, flags


def _placeholder(kind: Any) -> str:
    """What stands for the value of a flag: N for whole numbers, X for others, PATH, TEXT."""
    kinds = set(typing.get_args(kind)) or {kind}
    return next((text for of, text in ((int, "N"), (float, "X"), (Path, "PATH")) if of in kinds), "TEXT")


def _first_words(path: Path) -> str:
    """First sentence of a module's docstring, up to its first colon if that says enough; without the full stop."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    sentence = re.split(r"(?<=[a-z])\. |\.$", line)[0]
    text = sentence if len(sentence) <= _LINE - _FIRST_WIDTH else re.split(r"[:;,]", sentence)[0]
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _row(name: str, text: str) -> str:
    return f"{name:<{_FIRST_WIDTH}} {text}" if text else name


def _wrapped(names: list[str], *, indent: int) -> list[str]:
    lines = [" " * indent]
    for name in names:
        if len(lines[-1]) + len(name) > _LINE:
            lines.append(" " * indent)
        lines[-1] += name + " "
    return lines


def main() -> int:
    """Rewrite the README, or with --check say whether it would change."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if something would change")
    check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = rewritten(before)
    if before == after:
        return 0
    if check:
        print("README.md is behind the code; `make docs` rewrites it", file=sys.stderr)
        return 1
    path.write_text(after, encoding="utf-8")
    print("README.md was rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
