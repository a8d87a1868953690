"""Whether this processor adds 8-bit products exactly, and who is told."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

import autocompress.doctor as doctor_module
import autocompress.study.prepare as prepare_module
from autocompress.config import load_config
from autocompress.doctor import examine
from autocompress.measure.saturation import INEXACT, saturates

_CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not _CPUINFO.exists() or platform.machine() != "x86_64", reason="reads the flags of Linux on x86")
def test_processors_without_integer_dot_products_saturate():
    flags = _CPUINFO.read_text().split()
    assert saturates() == (not {"avx512_vnni", "avx_vnni"} & set(flags))


@pytest.mark.parametrize(("inexact", "found"), [(True, INEXACT), (False, "added exactly")])
def test_the_doctor_says_so(inexact, found, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module, "saturates", lambda: inexact)
    assert [(c.ok, c.found) for c in examine(tmp_path) if c.check == "8-bit products"] == [(True, found)]


@pytest.mark.parametrize(
    ("inexact", "space", "runtime", "told"),
    [
        (True, {}, "onnxruntime", True),
        (False, {}, "onnxruntime", False),
        (True, {"activations": ["float"]}, "onnxruntime", False),
        (True, {"weight_bits": [3, 4, 32]}, "onnxruntime", False),
        (True, {}, "openvino", False),
    ],
)
def test_a_study_notes_it_where_a_file_could_be_concerned(inexact, space, runtime, told, monkeypatch):
    monkeypatch.setattr(prepare_module, "saturates", lambda: inexact)
    settings = {"space": space, "device": {"runtime": runtime}}
    config = load_config(settings, name="study", origin="test")
    assert prepare_module._of_the_processor(config) == ([INEXACT] if told else [])
