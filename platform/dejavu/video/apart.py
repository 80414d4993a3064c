"""A process apart that answers one request at a time, and may crash, hang or fill its memory without harm to this one.

A request and its reply are a line of JSON each: nothing is pickled. The process sees no variable of the environment
but those in KEPT, so that whoever takes it over finds no key there. It arms the system's own alarm before each request,
which ends it even inside a call that never returns; it also ends when its parent does, or after a minute without one.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
MAX_MEMORY_BYTES = 8 * 2**30
"""Address space: eight times what the largest picture that is accepted takes while it is scaled."""
IDLE_S = 60.0

Message = Mapping[str, Any]


class ApartError(RuntimeError):
    """The process ended over a request."""

    def __init__(self, module: str, status: int) -> None:
        self.signal = signal.Signals(-status) if status < 0 else None
        """What ended it, such as its own alarm, SIGALRM; None where it ended by itself."""
        how = self.signal.name if self.signal else f"status {status}"
        super().__init__(f"{module}: got an end by {how}, expected a reply; see what it wrote to the log")


class Apart:
    """The process that runs `module`, which calls `serve`: started when it is first asked, and again after it ended."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: Message, limit_s: float) -> dict[str, Any]:
        """Return the reply to a request.

        Raises:
            ApartError: The process crashed, or took longer than limit_s.
        """
        line = json.dumps({"limit_s": limit_s, "request": request}).encode() + b"\n"
        with self._lock:
            while True:
                process = self._process = self._process or self._start()
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError):
                    process.stdin.write(line)
                    process.stdin.flush()
                if reply := process.stdout.readline():
                    answered: dict[str, Any] = json.loads(reply)
                    return answered
                if status := self._end():  # 0: it had just ended for want of requests
                    raise ApartError(self.module, status)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-P", "-m", self.module]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with process, suppress(BrokenPipeError):
            process.communicate()  # closes its pipes, at which it ends
        return process.returncode


def serve(answer: Callable[[dict[str, Any]], Message]) -> None:
    """Answer the parent's requests until it closes the pipe or is silent for long."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    for name in (signal.SIGINT, signal.SIGALRM):
        signal.signal(name, signal.SIG_DFL)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    while select.select([0], [], [], IDLE_S)[0] and (line := sys.stdin.buffer.readline()):
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, asked["limit_s"])
        reply = json.dumps(answer(asked["request"])).encode() + b"\n"
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(reply)
        replies.flush()


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    with suppress(OSError, ValueError):  # not every system has each of them
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
