"""What ends a command with one line instead of a stack trace."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from dejavu.storage.store_path import storage_errors

STORAGE_ERROR = re.compile(r"^(?:\w+\.)*\w*Error: (storage: .+|\[Errno \d+\] .+)$", re.MULTILINE)
"""The line in a stack trace of a StorageError or any OSError."""


class OneLineError(RuntimeError):
    """Its message says all that a person needs: `<subject>: got X, expected Y; <next step>`."""


def line_of(error: Exception) -> str | None:
    """Return the line that tells of an error; None for a mistake of ours, whose stack trace is needed.

    What a worker of Ray raised is told as it was there. Where it went through Ray Data, the text of its stack trace is
    all that is left of it.
    """
    cause = getattr(error, "cause", error)  # of a RayTaskError, whose own text is a stack trace
    if isinstance(cause, (OneLineError, ValueError, *storage_errors())):
        return str(cause)
    found: list[str] = STORAGE_ERROR.findall(str(error))
    return found[-1] if found else None


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: its own, or 1 after a line on standard error."""
    try:
        return run() or 0
    except Exception as error:
        line = line_of(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        return 1
