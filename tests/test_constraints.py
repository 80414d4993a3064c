"""The pinned packages install under every Python that we take."""

from __future__ import annotations

import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]


def test_no_pinned_package_asks_for_a_newer_python_than_we_do() -> None:
    """Such as one that asks for 3.11.5: Debian 12 has 3.11.2, and pip then speaks of conflicts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (oldest,) = (one.version for one in SpecifierSet(project["requires-python"]))
    # By get: where importlib_metadata was imported, its own finder answers, and raises for a field that is not there.
    asked = {found.metadata["Name"]: found.metadata.get("Requires-Python", "") for found in distributions()}
    assert len(asked) > 100
    assert {name: what for name, what in asked.items() if oldest not in SpecifierSet(what)} == {}
