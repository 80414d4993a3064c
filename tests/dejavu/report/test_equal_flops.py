"""Comparing at equal computation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dejavu.report.equal_flops import Scored, leads, values_at, write_leads_csv


def scored(method: str, gflops: float, grounded: str) -> Scored:
    """One question a clip; `1` is grounded."""
    return Scored(method, gflops, {(str(index), "0"): float(one) for index, one in enumerate(grounded)})


def test_between_two_settings_each_question_is_interpolated() -> None:
    values = values_at(1.25, [scored("cmc", 1.0, "0011"), scored("cmc", 2.0, "0111")])
    assert values == {("0", "0"): 0.0, ("1", "0"): 0.25, ("2", "0"): 1.0, ("3", "0"): 1.0}


def test_outside_its_range_a_method_says_nothing() -> None:
    settings = [scored("cmc", 1.0, "0011"), scored("cmc", 2.0, "0111")]
    assert values_at(0.9, settings) == values_at(2.1, settings) == {}


def test_a_setting_off_the_frontier_does_not_pull_the_line_down() -> None:
    settings = [scored("cmc", 1.0, "0011"), scored("cmc", 1.5, "0001"), scored("cmc", 2.0, "1111")]
    assert sum(values_at(1.5, settings).values()) == pytest.approx(3.0)
    worse_above = [scored("cmc", 1.0, "0011"), scored("cmc", 2.0, "0001")]
    assert sum(values_at(1.5, worse_above).values()) == pytest.approx(2.0)


def test_the_best_baseline_at_that_cost_is_the_one_compared_with() -> None:
    others = [
        scored("cmc", 1.0, "0001"),
        scored("cmc", 2.0, "0011"),
        scored("tome", 1.0, "1100"),
        scored("tome", 2, "1110"),
    ]
    best, other = leads(scored("reusevit", 1.0, "1111"), others)
    assert (best.baseline, best.difference.mean, other.baseline, other.difference.mean) == ("tome", 0.5, "cmc", 0.75)
    assert best.difference.low <= 0.5 <= best.difference.high


def test_a_sure_difference_has_an_interval_above_zero() -> None:
    ours, other = scored("reusevit", 1.0, "1" * 40), [scored("cmc", 0.5, "0" * 40), scored("cmc", 1.5, "0" * 40)]
    (found,) = leads(ours, other)
    assert found.difference.low == found.difference.high == 1.0


def test_without_a_baseline_in_range_there_is_no_difference() -> None:
    assert leads(scored("reusevit", 3.0, "11"), [scored("cmc", 1.0, "01")]) == []


def test_the_table_has_a_row_for_each_baseline(tmp_path: Path) -> None:
    others = [scored("cmc", 0.5, "00"), scored("cmc", 1.5, "00"), scored("tome", 1.0, "01")]
    write_leads_csv(tmp_path / "equal_flops.csv", leads(scored("reusevit", 1.0, "11"), others))
    with (tmp_path / "equal_flops.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["baseline"], float(row["difference"])) for row in rows] == [("tome", 0.5), ("cmc", 1.0)]
