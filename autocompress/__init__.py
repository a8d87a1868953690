"""Automated search for models that can ship: prune, quantize and distil, then measure the exported file.

Public names load on first use, so that `import autocompress` costs milliseconds and needs no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.api import Choice, StudyResult, open_study, search
    from autocompress.config import StudyConfig
    from autocompress.errors import AutocompressError
    from autocompress.plan import CompressionPlan, DistillPlan
    from autocompress.records import FrontPoint, StudyRecord, TrialRecord

    __version__: str

_HOMES = {
    "Choice": "api",
    "StudyResult": "api",
    "open_study": "api",
    "search": "api",
    "StudyConfig": "config",
    "AutocompressError": "errors",
    "CompressionPlan": "plan",
    "DistillPlan": "plan",
    "FrontPoint": "records",
    "StudyRecord": "records",
    "TrialRecord": "records",
}

__all__ = [
    "AutocompressError",
    "Choice",
    "CompressionPlan",
    "DistillPlan",
    "FrontPoint",
    "StudyConfig",
    "StudyRecord",
    "StudyResult",
    "TrialRecord",
    "__version__",
    "open_study",
    "search",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"autocompress.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("autocompress")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"


class _CallableSearch(ModuleType):
    """The folder `autocompress/search/` as a module that can still be called like `autocompress.search`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from autocompress.api import search

        return search(*args, **kwargs)


class _Package(ModuleType):
    """Importing the folder `search` replaces the function of that name here: the module then stands in for it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "search" and isinstance(value, ModuleType):
            value.__class__ = _CallableSearch
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
