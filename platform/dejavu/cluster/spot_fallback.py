"""Which kind of machine Ray's autoscaler launches: spot first, on demand where the cloud has no spot machine now.

`cluster.yaml` copies this one file to the head node and names `score` to the autoscaler (version 1), which by itself
records that a type could not be launched and then asks for the same type again.
"""

from __future__ import annotations

from typing import Any

SPOT_SUFFIX = "_spot"
"""Ends the name of a node type that can be taken away; its twin with equal resources stays."""


def score(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Rank a node type for what is asked: Ray's own order, then types that could be launched lately, then spot.

    Since twins are equal to Ray, the last two decide between them alone: work for CPUs never moves to a GPU machine.

    The summary says which types could and could not be launched in the last half hour.

    Returns:
        A tuple, the greatest of which is launched, or None where nothing that is asked fits the type.
    """
    from ray.autoscaler._private.resource_demand_scheduler import (  # noqa: PLC0415  on the head node alone
        _default_utilization_scorer,
    )

    default = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if default is None:
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    return (*default, record is None or record.is_available, node_type.endswith(SPOT_SUFFIX))
