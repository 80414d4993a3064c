"""What Ray prints as an error and is none, left out of what a driver prints."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

NO_ERROR = re.compile(
    r"core_worker\.cc:\d+: Actor .* has constructor arguments in the object store and max_restarts > 0"
)
"""Ray's advice on each pool of actors, which it writes as an error and takes no setting against."""
_STDERR = 2
_PASS_ON = """
import re, sys
no_error = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not no_error.search(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""
_END_TIMEOUT_S = 2


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Leave lines with NO_ERROR out of what this process, and Ray's C++ in it, writes to stderr.

    The rest passes through a process that reads to the end, line by line, so that last words of a driver that crashes
    are not lost; stderr is no terminal then. Where there is no stderr, or no process can be started, nothing is left
    out.
    """
    try:
        there = os.dup(_STDERR)
    except OSError:
        yield
        return
    try:
        passing = _pass_on(there)
    except OSError:
        os.close(there)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, gone or none at all
            sys.stderr.flush()
        os.dup2(there, _STDERR)  # the last way in is closed, unless a child that outlives this has one
        os.close(there)
        with contextlib.suppress(subprocess.TimeoutExpired):
            passing.wait(_END_TIMEOUT_S)


def _pass_on(there: int) -> subprocess.Popen[bytes]:
    """Put a process between stderr and the file descriptor."""
    command = [sys.executable, "-I", "-S", "-c", _PASS_ON, NO_ERROR.pattern]
    # In a session of its own: Ctrl-C is the driver's, whose words on it have yet to pass.
    passing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=there, start_new_session=True)
    assert passing.stdin is not None
    os.dup2(passing.stdin.fileno(), _STDERR)
    passing.stdin.close()
    return passing
