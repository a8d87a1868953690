"""The whole way, with a real search: start it on a page, see its points come, take one away, run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import RESULTS
from served import serving
from tiny_study import environment, write_study

from autocompress.service.scheduler import job_command


def test_a_search_is_started_watched_and_taken_away(
    browser, open_page, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment().items():  # the search imports the tiny network
        monkeypatch.setenv(name, value)
    text = write_study(tmp_path / "study").read_text()
    weights = json.dumps(str(tmp_path / "study" / "teacher.safetensors"))
    text = text.replace('"teacher.safetensors"', weights)
    with serving(tmp_path / "runs", command=job_command, allow_code=True) as server:
        page = open_page(server, "/")
        page.get_by_label("A study file").check()
        page.locator("#study-text").fill(text)
        page.locator("#launch-form summary").click()
        page.locator("#name").fill("tiny")
        page.locator("#max-trials").fill("6")  # these end it, long before the budget does
        page.locator("#budget").fill("5m")
        page.locator("#start").click()
        page.locator("#figure-accuracy_size .points path.point").first.wait_for(state="attached", timeout=240_000)
        page.locator(".trials tbody th a").first.wait_for()
        page.locator("#state", has_text="finished").wait_for(timeout=240_000)
        page.locator(".answer", has_text="on test data").wait_for()  # so it tells of the front after the final stage
        page.screenshot(path=_results() / "search-finished.png", full_page=True)
        page.locator("#sliders a", has_text="Look at it").click()
        page.locator("body[data-ready]").wait_for(state="attached")
        number = int(page.locator("body").get_attribute("data-trial"))
        with page.expect_download(timeout=120_000) as arriving:
            page.locator("#export").click()
        arriving.value.save_as(tmp_path / "bundle.zip")
        (study,) = server.get("/api/v1/studies").json["items"]
        point = next(
            p for p in server.get(f"/api/v1/studies/{study['id']}/front").json["front"] if p["trial"] == number
        )
    _opens(tmp_path / "bundle.zip", point, tmp_path)


def _opens(bundle: Path, point: dict[str, Any], folder: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder / "bundle")
    files = {path.name: path for path in (folder / "bundle").rglob("*") if path.is_file()}
    assert {"model.onnx", "model_card.md", "plan.json", "run.py"} <= set(files)
    assert json.loads(files["plan.json"].read_text()) == point["plan"]
    assert files["model.onnx"].stat().st_size >= point["size_bytes"]  # and its provenance
    ran = subprocess.run(
        [sys.executable, files["run.py"]], cwd=folder, env={**os.environ, "PYTHONPATH": ""}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def _results() -> Path:
    RESULTS.mkdir(exist_ok=True)
    return RESULTS
