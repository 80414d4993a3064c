"""A cluster that grows: Ray's own autoscaler, with machines that are raylets here in place of a cloud's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import submit
import yaml

from dejavu.backbones.load import load_backbone
from dejavu.experiment import RECIPES
from dejavu.stages.prepare import draw_world
from dejavu.stages.transcode import source_key, transcode_one
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from dejavu.sweep.study import write_chosen
from reuse_models.baselines.eventful import EventfulConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 600
HEAD = "ray.head.default"
"""What Ray's stand-in for a cloud calls the head's type."""


class Cloud:
    """The cluster, and what its dashboard says of it."""

    def __init__(self, cluster: submit.Cluster) -> None:
        self.cluster = cluster

    def list(self, what: str) -> list[dict[str, Any]]:
        """List nodes or actors, those that are gone too."""
        token = self.cluster.token.read_text(encoding="ascii")
        url = f"{self.cluster.dashboard}/api/v0/{what}?detail=1&limit=1000"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return found

    def machines(self) -> list[dict[str, Any]]:
        """List all machines that ever were, but for the head."""
        return [node for node in self.list("nodes") if not node["is_head_node"]]

    def is_empty(self) -> bool:
        """Whether no machine is up but the head."""
        return all(machine["state"] == "DEAD" for machine in self.machines())


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A head without work and nothing else; the GPU types of cluster.yaml, one machine at most."""
    from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

    types = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))["available_node_types"]
    kinds = {
        name: kind | {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1}
        for name, kind in types.items()
        if name.startswith("gpu_")
    }
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    config = BASE_READONLY_CONFIG | {
        "max_workers": 1,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "head_node_type": HEAD,
        "available_node_types": {HEAD: types["head"] | {"node_config": {}}, **kinds},
    }
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_NODE_TYPE_NAME": HEAD,  # as `ray up` tells the head
        "RAY_enable_autoscaler_v2": "0",
        "RAY_AUTOSCALER_UTILIZATION_SCORER": "dejavu.cluster.spot_fallback.score",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with submit.cluster(autoscaling=config) as started:
        yield Cloud(started)


@pytest.fixture
def results(with_world: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A results folder in which all but embedding is done."""
    experiment = RECIPES["tiny"][1]
    backbone = load_backbone()
    store = Store.open(tmp_path / "store")
    with_world(tmp_path)
    dataset, _ = draw_world(tmp_path / "world", experiment.synthetic)
    for clip in dataset.clips:
        row = {"clip": asdict(clip), "key": source_key(clip, experiment.transcode, backbone.frame_px)}
        row |= {"store": str(store.root), "px": backbone.frame_px, "config": asdict(experiment.transcode)}
        assert transcode_one(row)["error"] == ""
    write_chosen(store, [name_setting(EventfulConfig(refreshed_tokens=16), backbone.identity, {})])
    return tmp_path


def test_demand_brings_a_gpu_machine_up_and_idleness_takes_it_down(cloud: Cloud, results: Path) -> None:
    """Two actors are asked for where there is room for one machine: the work is done there, and waits for no other."""
    assert cloud.is_empty()
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "tiny", "--results", str(results)]
    command += ["--stages", "embed", "--num-workers", "2", "--gpus-per-worker", "1"]
    command += ["--embed.streams", "2"]  # several batches, or one actor would be enough
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= submit.environment(cloud.cluster.token) | {"RAY_ADDRESS": cloud.cluster.address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    printed = done.stdout + done.stderr
    assert "waiting for a machine with 1 GPUs" in printed
    assert "Adding 1 node(s) of type gpu_spot" in printed
    assert "embedded 8 clips under 2 settings" in printed

    (machine,) = cloud.machines()
    assert machine["resources_total"]["GPU"] == 1
    actors = [actor for actor in cloud.list("actors") if "EncodeRow" in actor["class_name"]]
    assert len(actors) == 2
    assert {actor["node_id"] for actor in actors if actor["node_id"]} == {machine["node_id"]}
    frames = [
        (shard.parent.name, row["content_id"], row["frame"])
        for shard in (results / "store" / "embeddings").glob("*/*.parquet")
        for row in pq.read_table(shard, columns=["content_id", "frame"]).to_pylist()
    ]
    assert len(frames) == len(set(frames)) > 0

    deadline = time.monotonic() + WAIT_S
    while not cloud.is_empty():
        assert time.monotonic() < deadline, "the idle machine is still up"
        time.sleep(1)
