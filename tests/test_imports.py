"""Where a library may be imported, and in which direction the stages may know each other; read with `ast`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autocompress"

# Library -> the files and folders (ending in "/") of the package that may import it, anywhere in the file.
ALLOWED: dict[str, tuple[str, ...]] = {
    "torch": (
        *(
            "zoo/",
            "space/layers.py",
            "space/groups.py",
            "space/blocks.py",
            "space/watch.py",
            "space/attention.py",
            "space/hidden.py",
            "space/factors.py",
        ),
        *("space/slices.py", "compress/", "recover/"),
        "export/",
        "search/profile.py",
        # The stages of a trial, and what they are given: every one of them is imported on use.
        "study/",
    ),
    "torchvision": ("zoo/", "recover/"),
    "torch_pruning": ("space/groups.py", "compress/"),
    "safetensors": ("zoo/", "compress/", "recover/", "study/", "bundle.py"),
    "cloudpickle": ("study/",),
    "onnx": ("export/", "measure/", "bundle.py"),
    "onnx_ir": ("export/", "measure/"),
    "onnxscript": ("export/",),
    "onnxruntime": ("export/", "measure/"),
    "openvino": ("measure/",),
    "ml_dtypes": ("export/", "compress/"),
    "optuna": ("study/", "search/sampler.py", "search/front_sampler.py", "search/knob_sampler.py", "search/ranges.py"),
    "threadpoolctl": ("search/front_sampler.py",),
    "sqlalchemy": ("study/database.py", "service/jobs.py"),
    "ray": ("study/executors.py",),
    "typer": ("cli.py",),
    "rich": ("cli.py", "terminal.py"),
    "fastapi": ("service/", "agent/"),
    "starlette": ("service/", "agent/"),
    "uvicorn": ("service/", "agent/"),
    # The report is one offline file: it holds plotly's own script and the values, escaped by markupsafe.
    "plotly": ("figures/", "report.py"),
    "jinja2": ("report.py", "service/"),
    "markupsafe": ("report.py", "service/"),
    "sklearn": ("zoo/datasets.py", "zoo/tables.py"),
    "pydantic": ("config.py", "service/", "agent/"),
    "numpy": ("",),
}
# Files that may use the standard library, numpy and pydantic only (pydantic in config.py, as above).
PLAIN = ("plan.py", "records.py", "errors.py", "config.py", "space/search_space.py", "front/", "search/solver.py")
PLAIN += ("search/surrogate.py", "search/stopping.py", "search/options.py", "search/cost.py", "search/inherit.py")
PLAIN += ("search/sensitivity.py", "resources.py", "space/ranks.py")
# What starts without torch: nothing that imports torch may be imported at the top of these.
TORCH_FREE = ("__init__.py", "__main__.py", "api.py", "cli.py", "terminal.py", "report.py", "bundle.py", "figures/")
TORCH_FREE += ("doctor.py", "study_file.py", "measure/machine.py", "front/", "service/", *PLAIN)
TORCH_FREE += ("study/__init__.py", "study/store.py", "study/database.py", "study/lock.py")
# The stages in order; a stage may use the ones before it, and only `study/` knows them all.
STAGES = ("space", "compress", "recover", "export", "measure", "search", "study")


def files() -> list[str]:
    return sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if "_resources" not in p.parts)


def is_in(file: str, places: tuple[str, ...]) -> bool:
    return any(file.startswith(place) if place.endswith("/") or not place else file == place for place in places)


def imports(file: str, *, on_load_only: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; `if TYPE_CHECKING` costs nothing and does not count."""
    pending: list[ast.AST] = [ast.parse((PACKAGE / file).read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively; write the full name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif not (on_load_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def libraries(file: str) -> set[str]:
    roots = {name.partition(".")[0] for name in imports(file)}
    return roots - set(sys.stdlib_module_names) - {"autocompress", "__future__", ""}


def file_of(module: str) -> str | None:
    """File of one of our modules: "autocompress.front.pareto" is front/pareto.py."""
    path = module.replace(".", "/").removeprefix("autocompress").removeprefix("/")
    candidates = (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py")
    return next((c for c in candidates if (PACKAGE / c).is_file()), None)


def loaded_with(file: str) -> set[str]:
    """Files of ours that are loaded when a file is."""
    seen: set[str] = set()
    pending = [file]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        modules = (m for m in imports(current, on_load_only=True) if m.partition(".")[0] == "autocompress")
        pending.extend(f for m in modules if (f := file_of(m)))
    return seen


@pytest.mark.parametrize("file", files())
def test_a_library_is_imported_only_where_the_table_allows_it(file):
    for library in sorted(libraries(file)):
        assert library in ALLOWED, f"{file} imports {library}: give it a line in the table of this test"
        assert is_in(file, ALLOWED[library]), f"{file} may not import {library}; {ALLOWED[library]} may"


@pytest.mark.parametrize("file", [f for f in files() if is_in(f, PLAIN)])
def test_plain_files_need_only_numpy_and_pydantic(file):
    assert libraries(file) <= {"numpy", "pydantic"}


@pytest.mark.parametrize("file", [f for f in files() if is_in(f, TORCH_FREE)])
def test_what_must_start_quickly_loads_neither_torch_nor_the_search(file):
    heavy = {"torch", "torchvision", "torch_pruning", "onnxruntime", "optuna", "plotly", "sklearn"}
    if is_in(file, ALLOWED["plotly"]):
        heavy -= {"plotly"}
    for loaded in sorted(loaded_with(file)):
        roots = {name.partition(".")[0] for name in imports(loaded, on_load_only=True)}
        assert roots.isdisjoint(heavy), f"{file} loads {loaded}, which imports {sorted(roots & heavy)}"


@pytest.mark.parametrize("file", [f for f in files() if f.partition("/")[0] in STAGES[:-1]])
def test_no_stage_loads_a_later_one(file):
    # Loads: `space/` may try out inside a function whether its groups survive `compress/`.
    stage = file.partition("/")[0]
    later = STAGES[STAGES.index(stage) + 1 :]
    for module in imports(file, on_load_only=True):
        parts = module.split(".")
        if parts[0] == "autocompress" and len(parts) > 1:
            assert parts[1] not in later, f"{file} imports {module}, a later stage"


@pytest.mark.parametrize("file", files())
def test_the_package_does_not_import_its_resources_or_tests(file):
    assert {name.partition(".")[0] for name in imports(file)}.isdisjoint({"studies", "dashboards", "tests"})


def test_the_reader_of_imports_sees_what_it_should(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import json\n"
        "def f():\n    import onnx.helper\nclass A:\n    import sklearn\n"
        "try:\n    from rich import box\nfinally:\n    pass\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert libraries("x.py") == {"onnx", "sklearn", "rich"}
    assert "onnx.helper" not in set(imports("x.py", on_load_only=True))
    assert "sklearn" in set(imports("x.py", on_load_only=True))
