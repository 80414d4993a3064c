"""How many rows are given."""

from __future__ import annotations

import pytest

from reuse_models.reusevit.engines.given_rows import REMEMBERED, Capacities, capacity


@pytest.mark.parametrize("num_rows", [37, 740, 16448])
def test_sizes_hold_what_is_needed_with_headroom_and_not_much_more(num_rows: int) -> None:
    for percent in range(0, 101):
        size = capacity(percent / 100, num_rows)
        assert min(1.05 * percent / 100 * num_rows, num_rows) <= size <= num_rows
        assert size <= max(1.05 * percent / 100 * num_rows, 1) * 2**0.125 + 9


def test_few_sizes_serve_all_shares() -> None:
    assert len({capacity(share / 1000, 16448) for share in range(100, 1001)}) < 30


def test_the_most_that_was_needed_lately_counts() -> None:
    capacities = Capacities(2)
    assert not capacities.is_known
    assert capacities.rows(1000) == (1000, 1000)
    capacities.note([500, 100], 1000)
    capacities.note([100, 100], 1000)
    assert capacities.rows(2000) == (capacity(0.5, 2000), capacity(0.1, 2000))
    for _ in range(REMEMBERED):
        capacities.note([100, 100], 1000)
    assert capacities.rows(1000) == (capacity(0.1, 1000),) * 2
    capacities.forget()
    assert capacities.rows(1000) == (1000, 1000)
