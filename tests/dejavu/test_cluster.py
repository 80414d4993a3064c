from __future__ import annotations

import pytest
import ray

from dejavu.cluster import ClusterError, actor_pool


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
