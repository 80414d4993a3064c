"""The table of ablations: interpolation, intervals over seeds, and what cannot be reached."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from dejavu.ablation.table import estimate, render, value_at
from dejavu.ablation.trial import Point


def point(reduction: float, cosine: float, bias: float = 0.0) -> Point:
    return Point(bias=bias, reduction=reduction, reuse_rate=0.5, cosine=cosine, acc_gqa=cosine / 2, acc_qa=cosine)


def row(variant: str, seed: int, cosines: tuple[float, float]) -> dict[str, Any]:
    points = [point(2.0, cosines[0]), point(4.0, cosines[1])]
    return {"variant": variant, "seed": seed, "points": [asdict(one) for one in points]}


def test_a_value_lies_on_the_line_between_its_nearest_neighbours() -> None:
    points = [point(1.0, 1.0), point(2.0, 0.9), point(4.0, 0.5), point(9.0, 0.0)]
    assert value_at(points, 3.0, "cosine") == pytest.approx(0.7)
    assert value_at(points, 2.0, "acc_gqa") == pytest.approx(0.45)


def test_nothing_is_said_outside_what_was_reached() -> None:
    assert value_at([point(1.0, 1.0), point(2.0, 0.9)], 2.1, "cosine") is None


def test_an_interval_is_students() -> None:
    # By hand: mean 2, deviation 1, 4.303 / sqrt 3.
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == pytest.approx(2.0)
    assert found.half == pytest.approx(4.303 / 3**0.5)


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ by 0.2, the variant from its default by 0.01 to 0.012 in each.
    default = [row("default", seed, (0.7 + 0.1 * seed, 0.5)) for seed in range(3)]
    better = [row("refresh=8", seed, (0.71 + 0.1 * seed + 0.002 * seed, 0.51)) for seed in range(3)]
    line = next(line for line in render(default + better).splitlines() if line.startswith("| refresh=8"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    # At 2.5x three quarters of the point at 2x count: 0.75 * (0.01 + 0.002 * mean seed) + 0.25 * 0.01.
    assert cells[2].startswith("**+0.0115")
    assert cells[-1] == "3"


def test_a_variant_that_never_gets_so_far_says_so() -> None:
    near = row("refresh=4", 0, (0.9, 0.8)) | {"points": [asdict(point(1.5, 0.9)), asdict(point(2.7, 0.8))]}
    line = next(line for line in render([row("default", 0, (0.9, 0.8)), near]).splitlines() if "refresh=4" in line)
    assert line.count("out of reach") == 4
