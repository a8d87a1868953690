"""What `pip install .` brings: the resources inside the package, the types, the licence, and one command."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import autocompress
from autocompress.resources import resource

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = Path(autocompress.__file__).parent
installed = pytest.mark.skipif(
    PACKAGE == ROOT / "autocompress", reason="the tests run on the checkout; `pip install .` runs them on the package"
)


@installed
@pytest.mark.parametrize("kind", ["studies", "dashboards"])
def test_the_installed_package_carries_the_resources_of_the_checkout(kind: str) -> None:
    found, carried = files(ROOT / kind), files(PACKAGE / "_resources" / kind)
    assert found
    assert carried == found


def files(folder: Path) -> dict[Path, bytes]:
    """Contents by path, without what Python compiled from the scripts of the benchmark."""
    paths = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder): p.read_bytes() for p in paths}


@installed
def test_the_installed_package_finds_its_own_resources_first() -> None:
    assert resource("studies") == PACKAGE / "_resources" / "studies"  # type: ignore[arg-type]
    assert resource("dashboards").is_relative_to(PACKAGE)


def test_the_package_has_types() -> None:
    assert (PACKAGE / "py.typed").is_file()


@installed
def test_the_installed_package_brings_its_licence_and_its_command() -> None:
    distribution = metadata.distribution("autocompress")
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert any(str(file).endswith("LICENSE") for file in distribution.files or ())
    (command,) = [entry for entry in distribution.entry_points if entry.group == "console_scripts"]
    assert (command.name, command.value) == ("autocompress", "autocompress.cli:main")


@installed
def test_the_version_of_the_package_is_that_of_the_project() -> None:
    assert autocompress.__version__ == PROJECT["project"]["version"]


def test_the_extras_are_those_that_the_documents_name() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"test", "dev", "openvino", "serve", "browser"}
    assert "autocompress[test]" in extras["dev"]
    assert "autocompress[serve]" in extras["test"]


def test_what_is_shipped_is_named_in_the_build() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["autocompress"]
    assert wheel["force-include"] == {name: f"autocompress/_resources/{name}" for name in ("studies", "dashboards")}
