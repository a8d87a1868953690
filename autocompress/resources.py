"""Where the files that are no Python live: built-in studies and the pages of the dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autocompress.errors import UsageError

_PACKAGE = Path(__file__).parent


def resource(kind: Literal["studies", "dashboards"]) -> Path:
    """Folder of a kind of resource: inside the package when installed, at the root of a checkout.

    Raises:
        UsageError: neither exists, so the installation is incomplete.
    """
    for folder in (_PACKAGE / "_resources" / kind, _PACKAGE.parent / kind):
        if folder.is_dir():
            return folder
    raise UsageError(f"the folder {kind!r} is missing from this installation; reinstall autocompress")
