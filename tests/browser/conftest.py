"""A browser that notices what a reader would not: console errors, and requests that leave the server.

The pages are those of a real server on a seeded workspace. Without Playwright or Chromium the tests are skipped;
`pip install .[browser]` and `apt install chromium` bring both. Screenshots go to `test-results/`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from seed import seed

sys.path.append(str(Path(__file__).resolve().parents[1] / "service"))
from served import TOKEN, Server, serving

RESULTS = Path(__file__).resolve().parents[2] / "test-results"
ARGUMENTS = (
    "--no-sandbox", "--disable-background-networking", "--disable-quic", "--no-first-run",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000  # of a busy machine; nothing is timed here


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless; one for all tests."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install .[browser]")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("needs a browser: apt install chromium, or set CHROMIUM to one")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on made-up studies; searches that are started on it do nothing."""
    workspace = tmp_path_factory.mktemp("site") / "runs"
    seed(workspace, many=3000)
    with serving(workspace) as server:
        yield server


@pytest.fixture(scope="session")
def ids(site: Server) -> dict[str, str]:
    """Id by name of study."""
    return {entry["study"]: entry["id"] for entry in site.get("/api/v1/studies").json["items"]}


@pytest.fixture(scope="session")
def contexts(browser: Any) -> Iterator[Callable[[Server, bool], Any]]:
    """One profile per server, signed in or not: what was fetched once stays in its cache, as with a reader."""
    known: dict[tuple[str, bool], Any] = {}

    def give(server: Server, signed_in: bool) -> Any:
        key = (server.url, signed_in)
        if key not in known:
            known[key] = browser.new_context(reduced_motion="reduce")
            known[key].set_default_timeout(PATIENCE_MS)
            if signed_in:
                page = known[key].new_page()
                page.goto(f"{server.url}/login?token={TOKEN}&next=/static/favicon.svg")
                page.close()
        return known[key]

    yield give
    for context in known.values():
        context.close()


@pytest.fixture
def open_page(contexts: Callable[[Server, bool], Any]) -> Iterator[Callable[..., Any]]:
    """`open_page(server, "/path", width=, scheme=)` gives a page of somebody who is signed in, once it is ready.

    At the end no page may have logged an error, thrown one, or asked anybody but its server.
    """
    pages: list[Any] = []
    complaints: list[str] = []

    def visit(
        server: Server, path: str, *, width: int = 1280, height: int = 900, scheme: str = "light",
        signed_in: bool = True, expect: tuple[str, ...] = (),
    ) -> Any:  # fmt: skip
        page = contexts(server, signed_in).new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda m: _log(complaints, m, expect))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if _is_own(r.url, server) else complaints.append(f"asked for {r.url}"))
        page.goto(server.url + path)
        if signed_in:
            page.locator("body[data-ready], .problem-page").first.wait_for(state="attached")
        return page

    yield visit
    for page in pages:
        page.close()
    assert complaints == []


def _log(complaints: list[str], message: Any, expected: tuple[str, ...]) -> None:
    if message.type == "error" and not any(part in message.text for part in expected):
        complaints.append(message.text)


def _is_own(url: str, server: Server) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob") or (parts.hostname, parts.port) == ("127.0.0.1", server.port)
