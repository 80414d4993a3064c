"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of golden numbers and real data beside the project; tests skip plainly where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the folder ../shared with golden numbers and real clips is not here")
    return SHARED
