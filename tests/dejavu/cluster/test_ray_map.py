from __future__ import annotations

import logging
import math

import pytest
import ray

from dejavu.cluster.ray_map import configure, waves


def test_waves_hold_every_item_once_in_order() -> None:
    assert [list(wave) for wave in waves(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert list(waves((), 2)) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own, about what it sets itself
def test_ray_data_warns_neither_that_it_has_no_bars_nor_of_memory_that_was_fitted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure()
    logging.getLogger("ray.data._internal.progress").warning("Progress bars disabled.")
    assert not caplog.records
    assert not ray.data.DataContext.get_current().issue_detectors_config.detectors


def test_what_one_pipeline_may_keep_in_the_object_store_is_not_left_to_the_next() -> None:
    context = ray.data.DataContext.get_current()
    configure()
    usual = context.downstream_capacity_backpressure_ratio
    configure(store_bytes=5e6)
    assert context.execution_options.resource_limits.object_store_memory == 5e6
    assert context.downstream_capacity_backpressure_ratio < usual
    configure()
    assert context.execution_options.resource_limits.object_store_memory == math.inf
    assert context.downstream_capacity_backpressure_ratio == usual
