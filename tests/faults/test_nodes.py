"""Whole machines of a cluster are taken away while stages run on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.soak, pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(
    ("stage", "worker"), [("transcode", "transcode_one"), ("embed", "EncodeRow"), ("sweep", "ImplicitFu")]
)
def test_a_machine_lost_in_a_stage_costs_time_alone(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path, stage: str, worker: str
) -> None:
    """A machine beside the first, so small that both have work of the stage."""
    results = bench.undone(undisturbed, tmp_path / "results", stage)
    node = bench.add_node(num_cpus=1)
    driver = bench.start(results)
    bench.wait(driver, results, lambda: bench.made(results, stage) and bench.workers(worker, node.pid))
    bench.kill_node(node)
    assert len(bench.made(results, stage)) < len(bench.made(undisturbed, stage)), (
        "the kill came too late to show anything"
    )
    bench.finish(driver, results)
    same(results)
