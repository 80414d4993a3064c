"""What ends a command with one line instead of a stack trace."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dejavu.storage.store_path import storage_errors


class OneLineError(RuntimeError):
    """Its message says all that a person needs: `<subject>: got X, expected Y; <next step>`."""


def one_line_errors() -> tuple[type[BaseException], ...]:
    """Return what a command tells in one line, for an `except`; anything else is a mistake of ours."""
    return (OneLineError, ValueError, *storage_errors())


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: its own, or 1 after a line on standard error."""
    try:
        return run() or 0
    except one_line_errors() as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
