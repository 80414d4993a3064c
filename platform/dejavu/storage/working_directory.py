"""The directory that this process works in, which may be another by the same name after a while."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def _here() -> Path | None:
    with contextlib.suppress(FileNotFoundError):
        return Path.cwd()
    return None


HERE = _here()
"""When this was imported; None where it was gone just then."""


def enter_again() -> None:
    """Enter the working directory again where it was made anew: MLflow and Ray Tune ask where they are.

    Where several of Ray's nodes share a machine, each that begins to work unpacks a submitted job's directory again,
    under the feet of those that are in it.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        if HERE is not None:
            os.chdir(HERE)
