"""The README says what is true: its tree and verbs are printed from the code, its examples and names exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from autocompress import errors
from autocompress.cli import app
from autocompress.config import load_config
from autocompress.plan import CompressionPlan

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST_COMMAND = "pip install .[test] && pytest"
VERBS = sorted(c.name or c.callback.__name__ for c in app.registered_commands if c.callback)


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_tree_and_the_verbs_of_the_readme_are_those_of_the_code() -> None:
    assert load_script("readme").rewritten(README) == README, "the README is behind the code: run `make docs`"


def test_a_readme_without_a_region_is_refused() -> None:
    with pytest.raises(ValueError, match="no region <!-- tree -->"):
        load_script("readme").rewritten("# nothing")


def test_the_readme_names_every_module() -> None:
    block = README.partition("<!-- tree")[2].partition("<!-- /tree -->")[0]
    named = set(re.findall(r"\b\w+\.py\b", block))
    modules = {p.name for p in (ROOT / "autocompress").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules == named


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert re.search(rf"^\| `{verb}\b", README, re.MULTILINE)


def test_no_verb_of_the_readme_is_missing_from_the_command_line() -> None:
    shown = "\n".join([*code_blocks("sh"), *re.findall(r"`(autocompress [^`\n]+)`", README)])
    used = set(re.findall(r"\bautocompress ([a-z]+)\b", shown))
    assert {"search", "front", "report", "export", "init"} <= used
    assert used <= set(VERBS), used - set(VERBS)


def test_every_exit_code_is_in_the_readme() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.AutocompressError)]
    codes = {0, 130, *(k.exit_code for k in kinds)}
    assert codes == {int(c) for c in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}


def test_the_study_file_of_the_readme_is_valid() -> None:
    (text,) = code_blocks("toml")
    config = load_config(tomllib.loads(text), name="readme")
    assert (config.search.budget, config.search.max_drop, config.space.skip) == (600.0, 0.01, ("head",))


def test_the_python_example_of_the_readme_uses_names_that_exist() -> None:
    import autocompress
    from autocompress.records import FrontPoint

    _, text = code_blocks("python")
    compile(text, "README.md", "exec")
    assert all(hasattr(autocompress, name) for name in re.findall(r"autocompress\.(\w+)\(", README))
    assert set(re.findall(r"point\.(\w+)", text)) <= set(FrontPoint.__slots__)


def test_the_sampler_of_the_readme_works_in_a_study_of_ones_own(tiny_model, tiny_data) -> None:
    seam, _ = code_blocks("python")
    plans: list[CompressionPlan] = []

    def measure(plan: CompressionPlan) -> tuple[float, float, float]:
        plans.append(plan)
        bits = sum(plan.weight_bits.values())
        return 0.92 - 0.1 / bits, 4_000.0 * bits, 0.7 - 0.1 * sum(plan.prune_ratio.values())

    names = {"model": tiny_model, "images": tiny_data["train"][0], "trials": 4, "measure": measure}
    exec(compile(seam, "README.md", "exec"), names)
    assert len({plan.structure_key() for plan in plans}) == 4
    assert [t.state.name for t in names["study"].trials] == ["COMPLETE"] * 4


def test_every_built_in_study_is_in_the_readme() -> None:
    names = {path.stem for path in (ROOT / "studies").glob("*.toml")}
    assert names == set(re.findall(r"^\| `([a-z0-9_]+)` \| [^|]* parameters \|", README, re.MULTILINE))


def test_every_file_that_the_readme_shows_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert all((ROOT / link).is_file() for link in links)


def test_the_build_server_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert TEST_COMMAND in README
    assert TEST_COMMAND in script
    assert "pip install . && autocompress search" in README
    for line in ("autocompress search digits", "autocompress front digits", "autocompress report digits", "run.py"):
        assert line in script
        assert line in README or line == "autocompress search digits"


def test_the_build_server_may_run_the_script() -> None:
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & 0o111 == 0o111
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")


def test_every_habit_of_the_makefile_runs_something_that_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    habits = set(re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE))
    assert {"setup", "test", "lint", "smoke", "bench", "docs", "report"} <= habits
    scripts = re.findall(r"\$\(PYTHON\) (\S+\.py)", makefile)
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    first = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == version


def front_document() -> dict[str, object]:
    def point(trial: int, origin: str, test: float, size: int, ms: float) -> dict[str, object]:
        return {"trial": trial, "origin": origin, "val": test, "test": test, "size_bytes": size, "latency_ms": ms,
                "latency_ratio": ms / 0.4, "words": "a <b> & c"}  # fmt: skip

    return {
        "study": "x<y", "direction": "maximize", "spent_s": 600.0, "budget_s": 600.0,
        "device": {"runtime": "onnxruntime", "threads": 1, "batch": 1},
        "baseline": {"metric": "accuracy", "val": 0.9, "test": 0.9, "size_bytes": 1_000_000, "latency_ms": 0.4},
        "front": [point(1, "search", 0.895, 50_000, 0.2), point(2, "anchor", 0.86, 20_000, 0.1),
                  point(3, "search", 0.3, 9_000, 0.05), point(4, "baseline", 0.9, 1_000_000, 0.4)],
    }  # fmt: skip


def test_the_picture_is_xml_that_draws_every_point_that_loses_little() -> None:
    text = load_script("picture").draw(front_document())
    root = ET.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}circle")) == 2  # the one search point within 5 points of loss, in two panels
    assert "x&lt;y: within 1 point of the dense model, up to 20x smaller and up to 2.0x faster" in text
    assert "1 that loses more than 5 points not drawn" in text


def test_the_picture_in_the_readme_is_small_and_asks_for_nothing() -> None:
    text = (ROOT / "docs" / "front.svg").read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_check_of_the_readme_says_that_it_is_in_order() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "readme.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
