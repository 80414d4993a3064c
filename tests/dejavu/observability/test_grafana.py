"""The dashboard asks for metrics that there are: ours as the code exports them, Ray's as its dashboards know them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray

from dejavu.observability import metrics

DASHBOARD = Path(metrics.__file__).with_name("grafana.json")
SUFFIXES = ("_bucket", "_sum", "_count")
"""What Prometheus makes of a histogram."""


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def names(panels: list[dict[str, Any]]) -> set[str]:
    """List the metrics that are asked for."""
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    return set(re.findall(r"\bray_\w+", asked))


def test_every_metric_of_ours_is_shown_and_no_other(panels: list[dict[str, Any]]) -> None:
    exported = {f"ray_{name}" for name in re.findall(r'"(dejavu_\w+)"', Path(metrics.__file__).read_text())}
    shown = {name for name in names(panels) if name.startswith("ray_dejavu_")}
    assert len(exported) == 5
    assert {name.removesuffix("_bucket") for name in shown} == exported
    assert {name for name in shown if name.endswith(SUFFIXES)} == {"ray_dejavu_step_seconds_bucket"}


def test_rays_metrics_are_those_of_its_own_dashboards(panels: list[dict[str, Any]]) -> None:
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    known = set(re.findall(r"\bray_\w+", " ".join(path.read_text() for path in sorted(folder.glob("*.py")))))
    asked = {name for name in names(panels) if not name.startswith("ray_dejavu_")}
    assert len(asked) > 5
    assert asked <= known


def test_panels_do_not_overlap_and_say_what_they_show(panels: list[dict[str, Any]]) -> None:
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"] for panel in panels)
