"""The table of architectures: what it covers, and two of its rows from a search."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "architectures.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["architectures"] = module  # it asks for its networks to be pickled by value
    spec.loader.exec_module(module)
    return module


def test_many_families_of_both_kinds_are_tried(script: ModuleType) -> None:
    names = list(script.ARCHITECTURES)
    assert len(names) >= 14
    assert sum(name.startswith("torchvision") for name in names) >= 5
    families = " ".join(a.family for a in script.ARCHITECTURES.values())
    for word in ("transformer", "LSTM", "GRU", "depthwise", "squeeze", "grouped", "1-D", "inputs", "control flow"):
        assert word in families


def test_a_network_that_cannot_be_exported_is_a_row_with_its_reason(script: ModuleType, tmp_path: Path) -> None:
    line = script.row("branching", "its forward branches on the values of a tensor", tmp_path)
    assert line.count("|") == 9
    assert "refused: its forward branches on the values" in line


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "pruned", "quantized", "kinds"),
    [
        ("mlp", "2 widths", "3 linear", {"float", "uint8", "dynamic"}),
        ("row_lstm", "1 hidden", "1 recurrent, 1 linear", {"float", "uint8", "dynamic"}),
    ],
)
def test_a_searched_network_is_a_row_of_what_was_found(
    script: ModuleType, tmp_path: Path, name: str, pruned: str, quantized: str, kinds: set[str]
) -> None:
    assert script.run(name, workspace=tmp_path) == ""
    cells = [cell.strip() for cell in script.row(name, "", tmp_path).strip("|").split("|")]
    assert cells[0] == name
    assert cells[2:4] == [pruned, quantized]
    told = dict(re.findall(r"(\w+) (\S+), \d+\.\d% \(\d+\)", cells[5]))
    assert set(told) <= kinds
    assert float(told["float"]) < 5e-4, "fp16 files among them round weights by up to 2**-11 of their size"
    assert all(float(value) < 0.2 for value in told.values())
    assert float(cells[6]) < 1.0, "some file within two points is smaller than the dense one"
