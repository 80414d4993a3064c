from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu.observability.events import Work, keep_log
from dejavu.observability.metrics import Step, failed, metered, watched
from dejavu.records import Failure

ROOT = Path(__file__).resolve().parents[3]

DRIVER = """
import time, urllib.request
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from dejavu.cluster import cluster
from dejavu.observability.events import Work
from dejavu.records import Failure
from dejavu.observability.metrics import Step, failed, metered, watched

def work() -> None:
    with metered(Step(stage="tried", step="encode", clip_ids=["a"], method="eventful")) as done:
        done.num_frames = 12

cluster.connect()
own = ray.get_runtime_context().get_node_id()  # others may have been taken away by the tests before
here = NodeAffinitySchedulingStrategy(own, soft=False)
ray.get(ray.remote(num_cpus=0.1, scheduling_strategy=here)(work).remote())
failed([Failure(clip_id="b", stage="tried", reason="torn")])
waiting = watched(iter([1, 1]), Work(stage="tried", total=5, unit="clips"))
next(waiting), next(waiting)
(node,) = [one for one in ray.nodes() if one["NodeID"] == own]
wanted = ("dejavu_frames", "dejavu_step_seconds", "dejavu_clips_failed", "dejavu_waiting", "dejavu_worker_memory")
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    ours = [line for line in text.splitlines() if 'stage="tried"' in line]
    if all(any(line.startswith(f"ray_{name}") for line in ours) for name in wanted):
        break
    time.sleep(0.5)
print("\\n".join(line for line in text.splitlines() if line.startswith("ray_dejavu")))
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    keep_log(tmp_path)
    yield tmp_path
    logger = logging.getLogger("dejavu.observability.events")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def test_a_step_logs_its_clips_before_it_touches_them_and_its_time_after(log: Path) -> None:
    with metered(Step(stage="embed", step="decode", clip_ids=["a", "b"])) as done:
        assert [line["event"] for line in lines(log)] == ["decode begins"]
        done.num_frames = 7
    begun, ended = lines(log)
    assert begun["clip_ids"] == ended["clip_ids"] == ["a", "b"]
    assert (ended["event"], ended["stage"], ended["num_frames"]) == ("decode ends", "embed", 7)
    assert float(str(ended["seconds"])) >= 0


def test_a_step_that_raises_has_begun_and_not_ended(log: Path) -> None:
    with pytest.raises(ValueError, match="torn"), metered(Step(stage="embed", step="decode", clip_ids=["a"])):
        raise ValueError("torn")
    assert [line["event"] for line in lines(log)] == ["decode begins"]


def test_a_failure_is_told_with_its_clip_and_reason(log: Path) -> None:
    failed([Failure(clip_id="a", stage="embed", reason="ValueError: torn")])
    (line,) = lines(log)
    assert (line["event"], line["clip_id"], line["reason"]) == ("clip failed", "a", "ValueError: torn")


def test_results_pass_through_and_are_counted_in_units(log: Path) -> None:
    assert list(watched(["x", "yy"], Work(stage="embed", total=3, unit="clips"), count=len)) == ["x", "yy"]
    assert [line["done"] for line in lines(log) if line["event"] == "progress"] == [3]


def sample(text: str, name: str, tags: dict[str, str]) -> float | None:
    """Return the value of a metric under these tags among others, None where it is not exported."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        if found and found[1] == name and all(f'{key}="{value}"' in found[2] for key, value in tags.items()):
            return float(found[3])
    return None


@pytest.mark.ray
@pytest.mark.slow
def test_ray_exports_the_metrics_of_workers_and_driver(ray_environment: dict[str, str]) -> None:
    environment = {**ray_environment, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    step = {"stage": "tried", "step": "encode", "method": "eventful"}
    assert sample(done.stdout, "ray_dejavu_frames_total", step) == 12
    assert sample(done.stdout, "ray_dejavu_step_seconds_count", step) == 1
    assert sample(done.stdout, "ray_dejavu_step_seconds_bucket", {**step, "le": "+Inf"}) == 1
    assert sample(done.stdout, "ray_dejavu_clips_failed_total", {"stage": "tried"}) == 1
    assert sample(done.stdout, "ray_dejavu_waiting", {"stage": "tried"}) == 4
    assert (sample(done.stdout, "ray_dejavu_worker_memory_bytes", {"stage": "tried"}) or 0) > 2**20
