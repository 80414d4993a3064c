"""Whole machines of a cluster are taken away while stages run on them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_machines_lost_in_each_stage_cost_time_alone(bench: Any, same: Callable[[Path], None], tmp_path: Path) -> None:
    """Four raylets at the start, one at the end; small machines, so that each has work of every stage."""
    nodes = [bench.add_node(num_cpus=1) for _ in range(3)]
    results = bench.results(tmp_path / "results")
    store = results / "store"
    driver = bench.start(results)

    def lose(title: str, begun: Callable[[], object]) -> None:
        victims: list[subprocess.Popen[bytes]] = []

        def works() -> bool:
            victims[:] = [node for node in nodes if bench.workers(title, node.pid)] if begun() else []
            return bool(victims)

        bench.wait(driver, results, works)
        bench.kill_node(victims[0])
        nodes.remove(victims[0])

    lose("transcode_one", lambda: list(store.glob("transcoded/*.json")))
    lose("_EncodeRow", lambda: list(store.glob("embeddings/*/*.parquet")))
    lose("ImplicitFu", lambda: len(list(store.glob("embeddings/*"))) >= 2)
    printed = bench.finish(driver, results)
    same(results)
    assert "swept 6 of 6 settings" in printed
