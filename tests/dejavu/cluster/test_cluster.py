from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from dejavu.cluster.cluster import ClusterError, actor_pool


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    held: dict[str, float] = {"CPU": 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: held)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": held}])
    return held


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 7, 16, 96])
@pytest.mark.parametrize("workers", [None, 1])
def test_actors_leave_a_cpu_to_the_readers(resources: dict[str, float], cpus: int, workers: int | None) -> None:
    resources["CPU"] = cpus
    pool = actor_pool(workers, None)
    assert pool.num_actors * pool.cpus_per_actor + pool.cpus_per_reader <= cpus
    assert pool.gpus_per_actor == 0


def test_each_gpu_gets_an_actor(resources: dict[str, float]) -> None:
    resources |= {"CPU": 16.0, "GPU": 2.0}
    pool = actor_pool(None, None)
    assert (pool.num_actors, pool.gpus_per_actor) == (2, 1.0)
    assert actor_pool(None, 0.5).num_actors == 4


def test_more_than_the_cluster_has_is_refused_in_one_line(resources: dict[str, float]) -> None:
    with pytest.raises(ClusterError, match="gpus_per_worker: got 1, expected at most the cluster's 0"):
        actor_pool(None, 1.0)
    with pytest.raises(ClusterError, match="num_workers: got 1000 on 2 CPUs"):
        actor_pool(1000, None)


@pytest.mark.parametrize("machines", [(2, 2), (2, 16), (4, 4, 4, 4), (0, 16, 16)])
def test_the_smallest_machine_can_take_all_actors_and_a_reader(
    resources: dict[str, float], monkeypatch: pytest.MonkeyPatch, machines: tuple[int, ...]
) -> None:
    resources["CPU"] = sum(machines)
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus)} if cpus else {}} for cpus in machines]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 1.0}}])
    pool = actor_pool(None, None)
    assert pool.num_actors == sum(machines)
    smallest = min(cpus for cpus in machines if cpus)
    assert pool.num_actors * pool.cpus_per_actor + pool.cpus_per_reader <= smallest


@pytest.fixture
def growing(resources: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """A head without work that a launcher started; what is asked for comes up, and is listed."""
    asked: list[dict[str, float]] = []
    resources.clear()
    labels = {"ray.io/node-group": "head"}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources, "Labels": labels}])
    monkeypatch.setattr(ray, "remote", lambda **needs: lambda _: SimpleNamespace(remote=lambda: needs))

    def wait(probes: list[dict[str, float]], timeout: float) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        assert timeout >= 900
        asked.extend(probes)
        resources.update({"CPU": 8.0, "GPU": 1.0} if probes[0]["num_gpus"] else {"CPU": 16.0})
        return probes, []

    monkeypatch.setattr(ray, "wait", wait)
    return asked


def test_a_machine_is_waited_for_where_the_cluster_grows(growing: list[dict[str, float]]) -> None:
    pool = actor_pool(3, 1.0)
    assert growing == [{"num_cpus": 1, "num_gpus": 1.0}]
    assert (pool.num_actors, pool.gpus_per_actor) == (3, 1.0), "more machines come when the actors ask for them"
    assert actor_pool(None, 1.0).num_actors == 1
    assert len(growing) == 1, "the machine is up"


def test_without_a_gpu_asked_for_a_machine_with_cpus_is(growing: list[dict[str, float]]) -> None:
    pool = actor_pool(None, None)
    assert growing == [{"num_cpus": 1, "num_gpus": 0.0}]
    assert (pool.num_actors, pool.gpus_per_actor, pool.cpus_per_reader) == (16, 0, 1)


def test_a_machine_that_does_not_come_is_one_line(
    growing: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[dict[str, float]] = []
    monkeypatch.setattr(ray, "wait", lambda probes, timeout: ([], probes))
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    with pytest.raises(ClusterError, match="machines: got none with 1 GPUs within 30 minutes"):
        actor_pool(None, 1.0)
    assert cancelled == [{"num_cpus": 1, "num_gpus": 1.0}]
