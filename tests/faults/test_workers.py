"""A worker process is killed in every stage; the job goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_worker_killed_in_each_stage_costs_time_alone(
    bench: Any, same: Callable[[Path], None], tmp_path: Path
) -> None:
    results = bench.results(tmp_path / "results")
    store = results / "store"
    driver = bench.start(results)
    victims: list[psutil.Process] = []
    reached: dict[str, tuple[str, Callable[[], bool]]] = {
        "transcode": ("transcode_one", lambda: len(list(store.glob("transcoded/*.json"))) >= 2),
        "embed": ("_EncodeRow", lambda: bool(list(store.glob("embeddings/*/*.parquet")))),
        "sweep": ("ImplicitFu", lambda: len(list(store.glob("embeddings/*"))) >= 2),
    }
    for title, begun in reached.values():
        bench.wait(driver, results, lambda title=title, begun=begun: begun() and bench.workers(title))
        victims.append(bench.workers(title)[0])
        victims[-1].kill()
    printed = bench.finish(driver, results)
    same(results)
    assert "swept 6 of 6 settings" in printed
    assert not any(victim.is_running() for victim in victims)
