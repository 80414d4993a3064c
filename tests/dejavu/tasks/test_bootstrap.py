from __future__ import annotations

import numpy as np
import pytest

from dejavu.records import EvalRow
from dejavu.tasks.bootstrap import bootstrap, clustered_interval, paired_bootstrap


def row(clip: int, question: int, *, correct: bool) -> EvalRow:
    return EvalRow(
        question_id=f"{clip}_{question}",
        clip_id=str(clip),
        correct=correct,
        iop=float(correct),
        iou=0.25,
        grounded=correct,
    )


def rows_of(correct: list[list[bool]]) -> list[EvalRow]:
    return [
        row(clip, number, correct=value) for clip, values in enumerate(correct) for number, value in enumerate(values)
    ]


def test_independent_values_give_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=1000)
    interval = clustered_interval(values, [str(index) for index in range(1000)], num_samples=4000)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_values_alike_within_a_clip_widen_it_by_the_root_of_their_number() -> None:
    per_clip = np.random.default_rng(2).normal(size=400)
    clips = [str(index) for index in range(400)]
    alone = clustered_interval(per_clip, clips, num_samples=4000)
    nine_times = clustered_interval(np.repeat(per_clip, 9), list(np.repeat(clips, 9)), num_samples=4000)
    blind = clustered_interval(np.repeat(per_clip, 9), [str(index) for index in range(3600)], num_samples=4000)
    assert (nine_times.low, nine_times.high) == pytest.approx((alone.low, alone.high))
    assert (nine_times.high - nine_times.low) / (blind.high - blind.low) == pytest.approx(3.0, rel=0.1)


def test_two_clips_have_the_three_means_that_two_draws_can_give() -> None:
    # Both the first: 0 with 1/4, both the second: 1 with 1/4, one of each: 0.25 with 1/2.
    interval = bootstrap(rows_of([[False] * 3, [True]]), "correct")
    assert (interval.low, interval.high, interval.mean) == (0.0, 1.0, 0.25)


def test_a_setting_compared_with_itself_differs_by_exactly_zero() -> None:
    rows = rows_of([[True, False], [False, False, True], [True]])
    interval = paired_bootstrap(rows, rows[::-1], "correct")
    assert (interval.low, interval.high, interval.mean) == (0.0, 0.0, 0.0)


def test_pairing_sees_a_difference_that_two_separate_intervals_hide() -> None:
    generator = np.random.default_rng(3)
    correct = [[bool(value) for value in generator.integers(0, 2, size=5)] for _ in range(100)]
    worse = [
        [value and not (clip % 5 == 0 and number == 0) for number, value in enumerate(values)]
        for clip, values in enumerate(correct)
    ]
    rows, worse_rows = rows_of(correct), rows_of(worse)
    paired = paired_bootstrap(worse_rows, rows, "correct")
    assert paired.high < 0
    assert bootstrap(worse_rows, "correct").high > bootstrap(rows, "correct").low


def test_the_sign_is_first_minus_second() -> None:
    better, worse = rows_of([[True, True]] * 3), rows_of([[True, False]] * 3)
    assert paired_bootstrap(better, worse, "grounded").mean == 0.5
    assert paired_bootstrap(worse, better, "iop").mean == -0.5
    assert paired_bootstrap(worse, better, "iou").mean == 0.0


def test_the_seed_decides() -> None:
    rows = rows_of([[bool(value)] for value in np.random.default_rng(4).integers(0, 2, size=50)])
    assert bootstrap(rows, "correct", seed=5, num_samples=50) == bootstrap(rows, "correct", seed=5, num_samples=50)
    assert bootstrap(rows, "correct", seed=5, num_samples=50) != bootstrap(rows, "correct", seed=6, num_samples=50)


def test_unpaired_repeated_or_no_questions_are_refused() -> None:
    rows = rows_of([[True, False]])
    with pytest.raises(ValueError, match=r"1 questions in only one of both .first '0_1'"):
        paired_bootstrap(rows, rows[:1], "correct")
    with pytest.raises(ValueError, match="each question once"):
        bootstrap([*rows, rows[0]], "correct")
    with pytest.raises(ValueError, match="got 0 values"):
        bootstrap([], "correct")
