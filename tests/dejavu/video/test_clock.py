from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import pytest

from dejavu.video.clock import Clock

STEP = Fraction(1, 10)
MINUTE = Fraction(60)


def shown(told: Sequence[float | None], origin: float | None = 0, max_gap: Fraction = MINUTE) -> list[float]:
    """Return when pictures that last a tenth of a second are shown."""
    clock = Clock(None if origin is None else Fraction(str(origin)), STEP, max_gap)
    times = [None if time is None else Fraction(str(time)) for time in told]
    return [float(clock.place(time, STEP, after)) for time, after in zip(times, [*times[1:], None], strict=True)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([0, 0.1, 0.2, 0, 0.1], [0, 0.1, 0.2, 0.2, 0.2]),  # less than half a second: out of order
        ([3, 3.1, 3.2, 0, 0.1], [3, 3.1, 3.2, 3.3, 3.4]),  # begins again
        ([0, 0.1, 1800, 1800.1], [0, 0.1, 0.2, 0.3]),  # jumps
        ([0, 0.1, 30, 30.1], [0, 0.1, 30, 30.1]),  # a gap
        ([0, 0.1, 95443.7, 0.3], [0, 0.1, 0.2, 0.3]),  # jumps, and goes back
        ([0, 0.1, 30, 0.3, 0.4], [0, 0.1, 0.2, 0.3, 0.4]),  # one picture alone has leapt: no gap
        ([0, 10, 0, 0.1, 0.2], [0, 10, 10.1, 10.2, 10.3]),  # a slide show, and another recording
        ([0, 90, 180, 270], [0, 0.1, 0.2, 0.3]),  # a gap is long beside the pictures' rate
        ([5, 5.1], [5, 5.1]),  # begins late
        ([None, None, 0.2], [0, 0.1, 0.2]),  # no timestamps
        ([-3, -2.9, -2.8], [0, 0.1, 0.2]),  # before the container's start
        ([200_000, 200_000.1], [0, 0.1]),  # days after the sound
    ],
)
def test_where_pictures_are_shown(told: list[float | None], expected: list[float]) -> None:
    assert shown(told) == pytest.approx(expected)


def test_a_slow_rate_is_no_jump() -> None:
    clock = Clock(Fraction(0), usual := Fraction(90), MINUTE)
    assert [clock.place(Fraction(time), usual) for time in (0, 90, 180)] == [0, 90, 180]
    assert clock.remarks == []


def test_without_timestamps_a_picture_lasts_as_long_as_it_says() -> None:
    clock = Clock(Fraction(0), Fraction(1, 25), MINUTE)
    assert [clock.place(None, STEP) for _ in range(4)] == [0, STEP, 2 * STEP, 3 * STEP]


def test_seconds_count_from_the_container_s_start_or_else_from_the_first_picture() -> None:
    assert shown([101.4, 101.5], origin=100) == pytest.approx([1.4, 1.5])
    assert shown([-2, -1.9], origin=-2.5) == pytest.approx([0.5, 0.6])
    assert shown([101.4, 101.5], origin=None) == pytest.approx([0, 0.1])


def test_what_was_done_is_said() -> None:
    clock = Clock(Fraction(0), STEP, MINUTE)
    for time in ("0", "0.1", "20.1", "20.2", "1820.2", "0", "0.1"):
        clock.place(Fraction(time), STEP)
    assert clock.remarks == [
        "at 20.3 s the clock jumps by 1799.9 s: laid end to end",
        "at 20.4 s the clock goes back by 1820.3 s: laid end to end",
        "1 gap of 19.9 s in all without a picture, filled with the picture before",
    ]


@pytest.mark.parametrize("seed", range(200))
def test_segments_of_any_clock_lie_end_to_end(seed: int) -> None:
    rng = random.Random(seed)
    told: list[Fraction] = []
    for _ in range(rng.randint(1, 6)):
        # Each begins seconds before, or minutes behind, the end of the one before.
        end = told[-1] if told else Fraction(rng.choice((0, 3, 86_400)))
        start = end + (rng.choice((-1, 1, 1)) * Fraction(rng.randint(70, 40_000)) if told else 0)
        told += [start + index * STEP for index in range(rng.randint(1, 40))]
    clock = Clock(told[0], STEP, MINUTE)
    assert [clock.place(time, STEP) for time in told] == [index * STEP for index in range(len(told))]
