"""What the checks find on this machine, on a workspace that cannot be used, and with a library missing."""

from __future__ import annotations

import autocompress.doctor as doctor_module
from autocompress.doctor import Check, devices, examine


def found(checks: list[Check]) -> dict[str, Check]:
    return {check.check: check for check in checks}


def test_a_workspace_that_is_not_there_yet_is_fine_and_nothing_is_left_behind(tmp_path):
    checks = found(examine(tmp_path / "deep" / "runs"))
    assert all(check.ok for check in checks.values()), checks
    assert {
        "python",
        "torch",
        "onnxruntime",
        "processor",
        "8-bit products",
        "timing noise",
        "workspace",
        "sqlite",
    } <= set(checks)
    assert checks["sqlite"].found.endswith(", WAL")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_workspace_fails(tmp_path):
    (tmp_path / "file").write_text("no folder")
    checks = found(examine(tmp_path / "file"))
    assert not checks["workspace"].ok
    assert checks["workspace"].found.endswith("choose another folder with --workspace")


def test_a_network_file_system_fails_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module, "file_system", lambda _folder: "nfs4")
    check = found(examine(tmp_path))["sqlite"]
    assert not check.ok
    assert check.found.endswith(", nfs4")


def test_a_missing_library_is_named_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name == "plotly" else "1.0")
    checks = found(examine(tmp_path))
    assert [check.check for check in checks.values() if not check.ok] == ["plotly"]
    assert checks["plotly"].found == "missing; `pip install plotly`"


def test_products_are_not_looked_at_without_a_runtime(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name == "onnxruntime" else "1.0")
    assert "8-bit products" not in found(examine(tmp_path))


def test_a_device_is_a_runtime_that_is_installed(monkeypatch):
    monkeypatch.setattr(doctor_module, "_version", lambda name: "1.0" if name == "openvino" else None)
    assert [(d["name"], d["runtime"], d["version"]) for d in devices()] == [("local", "openvino", "1.0")]
