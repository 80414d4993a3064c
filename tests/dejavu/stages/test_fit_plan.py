"""How many workers a fit takes, and how many windows at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dejavu.stages.fit_plan import USABLE_SHARE, Machine, plan_fit
from reuse_models.reusevit.addon import addon_shape
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.training.memory import GIB, TrainingMemory
from reuse_models.training.warm_up import WarmUpConfig

LARGE = KNOWN_SHAPES["openai/clip-vit-large-patch14"]


def memory_for(workers: int) -> TrainingMemory:
    return TrainingMemory(
        shape=LARGE, addon=addon_shape(LARGE), num_addons=2, clips_per_step=16 // workers, shares_tower=True
    )


def machine(gib: float, slots: int = 2) -> Machine:
    return Machine(slots, int(gib * GIB))


def test_as_many_workers_as_wanted_where_memory_is_for_all() -> None:
    plan = plan_fit(memory_for, [machine(16)], 2)
    assert (plan.num_workers, plan.clips_at_once) == (2, 1)
    assert str(plan).startswith("2 workers, 1 window at once, at most 3.9 GiB each")
    assert plan.peak_bytes == memory_for(2).peak_bytes(1) < 0.5 * USABLE_SHARE * 16 * GIB


def test_memory_and_not_cpus_alone_bounds_the_workers() -> None:
    plan = plan_fit(memory_for, [machine(6, slots=8)], 8)
    assert plan.num_workers == 1


def test_workers_on_several_machines_share_none_with_all_others() -> None:
    together = plan_fit(memory_for, [machine(16, slots=2)], 4)
    apart = plan_fit(memory_for, [machine(16, slots=2), machine(16, slots=2)], 4)
    assert apart.num_workers == together.num_workers == 4  # no machine is given more than two
    assert plan_fit(memory_for, [machine(16, slots=4)], 4).num_workers < 4


def test_the_smallest_machine_counts() -> None:
    assert plan_fit(memory_for, [machine(64), machine(6)], 2).num_workers == 1


def test_what_does_not_fit_is_refused_with_the_number_and_what_to_lower() -> None:
    with pytest.raises(ValueError, match=r"got 1\.7 GiB .* expected 3\.9 GiB for 1 window .*; choose a smaller"):
        plan_fit(memory_for, [machine(2)], 2)
    with pytest.raises(ValueError, match=r"16 windows .* lower --train\.windows-at-once"):
        plan_fit(memory_for, [machine(16)], 1, given=16)
    with pytest.raises(ValueError, match=r"lower --train\.warm-up\.num-clips"):
        plan_fit(lambda n: replace(memory_for(n), warm_up=WarmUpConfig(num_pairs=10**6)), [machine(16)], 2)
    with pytest.raises(ValueError, match=r"lower the number of --train\.targets"):
        plan_fit(lambda n: replace(memory_for(n), num_addons=100), [machine(16)], 2)


def test_where_machines_come_up_on_demand_nothing_is_refused() -> None:
    assert plan_fit(memory_for, [machine(2)], 2, refuses=False).num_workers == 1


def test_windows_at_once_may_be_given() -> None:
    assert plan_fit(memory_for, [machine(64)], 1, given=3).clips_at_once == 3
    assert plan_fit(memory_for, [machine(64)], 2, given=30).clips_at_once == 8  # of a step of 16, on two workers
