"""Whose Ctrl-C it is: Ray Train and Ray Tune put handlers of their own in place and leave them there."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

TAKEN = (signal.SIGINT, signal.SIGUSR1)
"""Signals that they handle."""


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Put back what handled signals before.

    After a sweep, Tune would swallow the first Ctrl-C. After a fit, Train's handler would end the process as if all
    were well, and hold on to the controller of the fit, an actor of 400 MB.
    """
    before = {number: signal.getsignal(number) for number in TAKEN}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere they set none
            for number, handler in before.items():
                if handler is not None:  # one that is not Python's
                    signal.signal(number, handler)
