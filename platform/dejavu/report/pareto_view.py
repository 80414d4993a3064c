"""What the MLflow UI shows under "Views": quality against clock and computation as charts and a table, made ready.

MLflow keeps a saved view as a tag of the experiment, in JSON that its own front end writes and reads. A version that
reads it otherwise shows its usual page: nothing else depends on this.
"""

from __future__ import annotations

import json
from typing import Any

from dejavu.report.frontier import Quality

VIEW_ID = "pareto"
VIEW_NAME = "Quality against the clock and computation"

_SECTION = "quality-against-computation"
_COSTS = ("speedup", "flops_reduction", "ms_per_frame", "gflops_per_frame")
_COLUMNS = ("accuracy", "acc_gqa", "agreement", "cosine_to_dense", "reuse_rate", *_COSTS, "timed_speedup")


def saved_view(parent_id: str, quality: Quality, now_ms: int) -> str:
    """Return the tag's value: one run's children on test clips, cheapest last, and the charts that compare them.

    It says that it was saved `now_ms` milliseconds after 1970 began.
    """
    upwards = {"yaxis": {"key": quality, "type": "METRIC"}}
    scatter = [
        _chart("SCATTER", f"{quality} against {cost}") | {"xaxis": {"key": cost, "type": "METRIC"}} | upwards
        for cost in _COSTS
    ]
    shown = {"selectedParams": ["method"], "selectedMetrics": ["reuse_rate", "gflops_per_frame", quality]}
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_id}' and params.`split` = 'test'",
        # By a metric, since runs ordered by date are nested below their parent, folded away.
        "orderByKey": "metrics.`flops_reduction`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [f"metrics.`{name}`" for name in _COLUMNS],
        "compareRunSections": [
            {"uuid": _SECTION, "name": VIEW_NAME, "display": True, "isReordered": False, "columns": 2}
        ],
        "compareRunCharts": [*scatter, _chart("PARALLEL", "every setting") | shown | {"showAllRuns": False}],
    }
    return json.dumps({"name": VIEW_NAME, "createdAt": now_ms, "updatedAt": now_ms, "state": json.dumps(state)})


def _chart(kind: str, name: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": name.replace(" ", "-"),
        "displayName": name,
        "metricSectionId": _SECTION,
        "isGenerated": False,
        "deleted": False,
        "runsCountToCompare": 100,
    }
