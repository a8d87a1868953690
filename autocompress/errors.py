"""Every exception a user can meet, each with the exit code of the command line.

An `AutocompressError` is somebody's mistake or a limit of the machine: its text is one sentence
and the next step, and the command line prints it without a traceback. Anything else is our bug.
"""

from __future__ import annotations


class AutocompressError(Exception):
    """Base class; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(AutocompressError, ValueError):
    """A wrong argument, study file, model, data set or workspace."""

    exit_code = 2


class ConstraintError(AutocompressError):
    """Everything ran, but no artifact meets the constraints; the text names the nearest one."""

    exit_code = 3


class NotFoundError(AutocompressError, LookupError):
    """No such study or trial."""

    exit_code = 4


class DeviceError(AutocompressError):
    """A device is unknown, unreachable or refused to measure."""

    exit_code = 5


class ServerError(AutocompressError):
    """A server cannot be reached, or refuses who asks."""

    exit_code = 5


class BudgetError(AutocompressError):
    """The budget ended before the baseline was measured."""

    exit_code = 6


class StageError(AutocompressError):
    """One stage of one trial failed; raised `from` its cause.

    Args:
        stage: the stage that failed, for example "export".
        done: the stages that were finished before it.
        cause: what went wrong, in one sentence.
    """

    def __init__(self, stage: str, done: tuple[str, ...], cause: str) -> None:
        super().__init__(stage, done, cause)
        self.stage, self.done, self.cause = stage, done, cause

    def __str__(self) -> str:
        after = f" after {', '.join(self.done)}" if self.done else ""
        return f"{self.stage} failed{after}: {self.cause}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
