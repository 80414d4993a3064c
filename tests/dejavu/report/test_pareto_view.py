from __future__ import annotations

import json
from typing import Any

from dejavu.report.pareto_csv import COLUMNS
from dejavu.report.pareto_view import VIEW_NAME, saved_view

MAX_TAG_CHARS = 5000
"""MLflow refuses longer tags of an experiment."""
PARENT = "0123456789abcdef" * 2


def state() -> dict[str, Any]:
    """What the front end reads out of the tag."""
    read: dict[str, Any] = json.loads(json.loads(saved_view(PARENT, "acc_gqa", 1))["state"])
    return read


def test_a_view_fits_into_a_tag_and_has_a_name() -> None:
    value = saved_view(PARENT, "cosine_to_dense", 1_800_000_000_000)
    assert len(value) < MAX_TAG_CHARS
    assert json.loads(value)["name"] == VIEW_NAME


def test_a_view_shows_the_children_of_one_run_on_test_clips_alone() -> None:
    assert state()["searchFilter"] == f"tags.`mlflow.parentRunId` = '{PARENT}' and params.`split` = 'test'"


def test_every_metric_of_a_view_is_one_that_a_point_has() -> None:
    shown = [name.removeprefix("metrics.`").removesuffix("`") for name in state()["selectedColumns"]]
    shown.append(state()["orderByKey"].removeprefix("metrics.`").removesuffix("`"))
    for chart in state()["compareRunCharts"]:
        shown += chart.get("selectedMetrics", []) + chart.get("selectedParams", [])
        shown += [chart[axis]["key"] for axis in ("xaxis", "yaxis") if axis in chart]
    assert set(shown) <= set(COLUMNS)


def test_every_chart_is_in_a_section_and_has_a_name_of_its_own() -> None:
    sections = {section["uuid"] for section in state()["compareRunSections"]}
    charts = state()["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert all(chart["yaxis"]["key"] == "acc_gqa" for chart in charts if chart["type"] == "SCATTER")
