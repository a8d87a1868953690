"""A server in a process of its own, whose searches are stand-ins: python fake_server.py WORKSPACE PORT."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from autocompress.service.app import create_app
from autocompress.service.scheduler import job_command
from autocompress.service.settings import Settings


def command(workspace, job, server):
    real = job_command(workspace, job, server)
    return [real[0], str(Path(__file__).with_name("fake_search.py")), *real[3:]]


def main() -> None:
    workspace, port = Path(sys.argv[1]), int(sys.argv[2])
    app = create_app(Settings(workspace=workspace, port=port, min_free_bytes=0), command=command)
    uvicorn.run(app, port=port, log_config=None, ws="none")


if __name__ == "__main__":
    main()
