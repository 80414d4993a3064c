from __future__ import annotations

import itertools
import random

import pytest

from dejavu.records import ParetoPoint
from dejavu.report.frontier import best_within, hypervolume, mark_frontier, non_dominated, original_quality, quality_of


def point(
    method: str, setting: str, reduction: float | None, acc_gqa: float, *, speedup: float | None = None
) -> ParetoPoint:
    return ParetoPoint(
        method=method,
        setting=setting,
        split="test",
        num_clips=3,
        flops_reduction=reduction,
        acc_gqa=acc_gqa,
        speedup=speedup,
    )


def test_non_dominated_is_the_definition() -> None:
    generator = random.Random(0)
    for _ in range(50):  # few distinct values, so that ties on one and on both axes happen
        pairs = [(generator.randint(0, 5), generator.randint(0, 5)) for _ in range(12)]
        expected = [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in pairs) for x, y in pairs]
        assert non_dominated([x for x, _ in pairs], [y for _, y in pairs]) == expected


def test_the_hypervolume_is_the_area_under_the_stairs() -> None:
    # Two rectangles from (1, 10): 3 wide and 20 high, and 1 wide and 30 high, of which 20 are common.
    assert hypervolume([4.0, 2.0], [30.0, 40.0], worst=(1.0, 10.0)) == 3 * 20 + 1 * 10


def test_the_hypervolume_counts_cells_as_a_grid_does() -> None:
    generator = random.Random(1)
    for _ in range(20):
        pairs = [(generator.randint(0, 9), generator.randint(0, 9)) for _ in range(6)]
        cells = sum(any(x > i and y > j for x, y in pairs) for i, j in itertools.product(range(2, 10), range(3, 10)))
        assert hypervolume([x for x, _ in pairs], [y for _, y in pairs], worst=(2, 3)) == cells


def test_points_no_better_than_the_worst_add_nothing() -> None:
    assert hypervolume([0.5, 2.0], [90.0, 10.0], worst=(1.0, 10.0)) == 0.0


def test_the_frontier_is_marked_in_place() -> None:
    test = [point("original", "", 1.0, 0.9), point("cmc", "t=3", 2.0, 0.8), point("cmc", "t=6", 1.5, 0.7)]
    marked = mark_frontier([*test, point("cmc", "t=9", None, 0.99)])
    assert [p.on_frontier for p in marked] == [True, True, False, False]
    assert [p.setting for p in marked] == ["", "t=3", "t=6", "t=9"]


def test_the_best_within_two_percent_is_chosen_by_gain_and_by_method() -> None:
    points = [
        point("original", "", 1.0, 0.50, speedup=1.0),
        point("cmc", "t=3", 2.0, 0.495, speedup=1.5),
        point("cmc", "t=6", 3.0, 0.49, speedup=1.2),
        point("cmc", "t=9", 4.0, 0.489, speedup=9.0),  # more than 2 % of 0.5 below it
        point("tome", "r=1", 1.2, 0.10),
        point("eventful", "k=1", 2.0, 0.50),
    ]
    assert {method: p.setting for method, p in best_within(points, "acc_gqa", "flops_reduction").items()} == {
        "original": "",
        "cmc": "t=6",
        "eventful": "k=1",
    }
    assert best_within(points, "acc_gqa", "speedup")["cmc"].setting == "t=3"
    assert "eventful" not in best_within(points, "acc_gqa", "speedup")  # nobody timed it


def test_quality_is_the_strictest_measure_that_all_have() -> None:
    full = ParetoPoint(
        method="a", setting="", split="test", num_clips=1, accuracy=0.5, acc_gqa=0.4, cosine_to_dense=1.0
    )
    plain = ParetoPoint(method="b", setting="", split="test", num_clips=1, cosine_to_dense=0.9)
    assert quality_of([full]) == "acc_gqa"
    assert quality_of([full, plain]) == "cosine_to_dense"
    with pytest.raises(ValueError, match="expected one of acc_gqa"):
        quality_of([])


def test_original_must_be_there_once() -> None:
    with pytest.raises(ValueError, match="got 0 settings of 'original'"):
        original_quality([point("cmc", "", 1.0, 0.5)], "acc_gqa")
    with pytest.raises(ValueError, match="got 2 settings"):
        original_quality([point("original", "", 1.0, 0.5)] * 2, "acc_gqa")
