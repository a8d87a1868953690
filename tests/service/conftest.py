"""A server with one finished study, shared by the tests of a module that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from example_study import write_example
from served import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("service") / "runs"
    write_example(workspace)
    with serving(workspace) as served:
        yield served


@pytest.fixture
def study(server: Server) -> str:
    """Address of the example study."""
    (entry,) = server.get("/api/v1/studies?name=digits").json["items"]
    return f"/api/v1/studies/{entry['id']}"
