"""The cluster files, held offline to Ray's own schema, to this repository's files, and to Ray's own scheduler."""

from __future__ import annotations

import copy
import re
import shlex
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from dejavu.cluster.spot_fallback import score
from dejavu.experiment import parse

ROOT = Path(__file__).resolve().parents[1]
CLOUDS = ("cluster.yaml", "cluster.gcp.yaml")
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
COMMANDS += ("head_start_ray_commands", "worker_start_ray_commands")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_ray_takes_the_file(cloud: dict[str, Any]) -> None:
    validate(cloud)


@pytest.mark.parametrize("mistake", ["unknown key", "no head", "text for a number"])
def test_ray_refuses_a_mistake(cloud: dict[str, Any], mistake: str) -> None:
    if mistake == "unknown key":
        cloud["idle_timeout"] = 10
    elif mistake == "no head":
        del cloud["head_node_type"]
    else:
        cloud["max_workers"] = "many"
    with pytest.raises(Exception):  # noqa: B017, PT011  Ray and jsonschema each have their own
        validate(cloud)


def test_the_head_has_no_work(cloud: dict[str, Any]) -> None:
    head = cloud["available_node_types"][cloud["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert "--num-cpus=0" in cloud["head_start_ray_commands"][-1]


def test_worker_counts_fit_together(cloud: dict[str, Any]) -> None:
    kinds = workers(cloud)
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in kinds.values())
    assert sum(kind["min_workers"] for kind in kinds.values()) == 0, "nothing is up that no stage asked for"
    assert cloud["idle_timeout_minutes"] > 0


def test_every_spot_type_has_an_equal_twin_that_stays(cloud: dict[str, Any]) -> None:
    kinds = workers(cloud)
    spot = [name for name in kinds if name.endswith("_spot")]
    assert spot
    for name in spot:
        twin = kinds[name.removesuffix("_spot") + "_on_demand"]
        assert twin["resources"] == kinds[name]["resources"]
        marks = [str(kind["node_config"]).lower().count("spot") for kind in (kinds[name], twin)]
        assert marks[0] == 1
        assert marks[1] == 0
        assert kinds[name]["min_workers"] == 0, "what must be up is not what can be taken away"


def test_commands_name_mounted_files_that_exist(cloud: dict[str, Any]) -> None:
    mounts = cloud["file_mounts"]
    assert all((ROOT / local).is_file() for local in mounts.values())
    named = set(re.findall(r"/home/ray/dejavu/\S+", " ".join(line for part in COMMANDS for line in cloud[part])))
    assert "/home/ray/dejavu/constraints.txt" in named
    assert named <= set(mounts)


def test_the_image_is_the_pinned_ray_on_a_python_we_support(cloud: dict[str, Any]) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tag = cloud["docker"]["image"].partition(":")[2]
    assert tag == f"{pins['ray']}-py311-gpu"
    assert yaml_documents("kuberay.rayjob.yaml")[1]["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]


def test_the_dashboard_listens_on_loopback(cloud: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in cloud["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay.rayjob.yaml"])
def test_what_must_be_replaced_is_documented(name: str) -> None:
    marks = set(re.findall(r"\b[A-Za-z]+-REPLACE\b", (ROOT / name).read_text(encoding="utf-8")))
    assert marks
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert [mark for mark in marks if mark not in text] == []


# ---------------------------------------------------------------------------------------- what the autoscaler launches
def launched(demands: list[dict[str, float]], unavailable: tuple[str, ...] = ()) -> dict[str, int]:
    """Ask Ray's scheduler what cluster.yaml would launch, as its monitor asks, with our scorer."""
    from ray.autoscaler._private.node_provider_availability_tracker import (
        NodeAvailabilityRecord,
        NodeAvailabilitySummary,
    )
    from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for

    config = read("cluster.yaml")
    records = {name: NodeAvailabilityRecord(name, False, time.time(), None) for name in unavailable}
    scorer = partial(score, node_availability_summary=NodeAvailabilitySummary(records))
    types = config["available_node_types"]
    nodes, unmet = get_nodes_for(types, {"head": 1}, "head", config["max_workers"], demands, scorer)
    assert not unmet
    return dict(nodes)


def test_cpu_work_brings_spot_machines_without_a_gpu() -> None:
    assert launched([{"CPU": 1}] * 20) == {"cpu_spot": 2}


def test_gpu_work_brings_gpu_machines_one_for_each() -> None:
    assert launched([{"GPU": 1}] * 3) == {"gpu_spot": 3}


def test_where_there_is_no_spot_machine_its_twin_is_launched() -> None:
    assert launched([{"GPU": 1}] * 2, unavailable=("gpu_spot",)) == {"gpu_on_demand": 2}
    assert launched([{"CPU": 1}], unavailable=("cpu_spot", "gpu_spot")) == {"cpu_on_demand": 1}


def test_cpu_work_never_moves_to_a_gpu_machine() -> None:
    assert launched([{"CPU": 1}], unavailable=("cpu_spot", "cpu_on_demand")) == {"cpu_spot": 1}


def test_beyond_the_limit_of_spot_the_twin_takes_over() -> None:
    assert launched([{"GPU": 1}] * 6) == {"gpu_spot": 4, "gpu_on_demand": 2}


def test_the_head_names_the_scorer_to_the_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.constants import AUTOSCALER_UTILIZATION_SCORER_KEY
    from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler

    config = read("cluster.yaml")
    words = shlex.split(config["head_start_ray_commands"][-1])
    assert f"{AUTOSCALER_UTILIZATION_SCORER_KEY}=spot_fallback.score" in words
    assert "PYTHONPATH=/home/ray/dejavu" in words
    assert config["file_mounts"]["/home/ray/dejavu/spot_fallback.py"] == "platform/dejavu/cluster/spot_fallback.py"
    monkeypatch.setenv(AUTOSCALER_UTILIZATION_SCORER_KEY, "dejavu.cluster.spot_fallback.score")
    scheduler = ResourceDemandScheduler(None, config["available_node_types"], config["max_workers"], "head", 1.0)
    assert scheduler.utilization_scorer is score


# ------------------------------------------------------------------------------------------------------------- KubeRay
def yaml_documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))


def test_the_rayjob_runs_a_command_that_the_pipeline_takes() -> None:
    job = yaml_documents("kuberay.rayjob.yaml")[1]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / Path(script).relative_to("/home/ray/dejavu")).is_file()
    assert parse(words).recipe == "nextqa"
    paths = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["PYTHONPATH"].split(":")
    assert all((ROOT / Path(path).relative_to("/home/ray/dejavu")).is_dir() for path in paths)


def test_the_rayjobs_pods_share_one_volume_and_the_head_has_no_work() -> None:
    claim, job = yaml_documents("kuberay.rayjob.yaml")
    spec = job["spec"]["rayClusterSpec"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["volumeMounts"][0]["mountPath"] == "/mnt/dejavu"
        assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert all("/mnt/dejavu" in word for word in shlex.split(job["spec"]["entrypoint"]) if word.startswith("/mnt"))
