"""Look at something all the while, from a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def looking(look: Callable[[], None], period_s: float) -> Iterator[None]:
    """Call `look` every so often from a thread, and once more at the end."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(period_s):
            look()
        look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
