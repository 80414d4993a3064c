"""Which orders of frames are refused, before anything is computed in one."""

from __future__ import annotations

import pytest

from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN, FrameStep, check_steps, schedule


@pytest.mark.parametrize("steps", [PUBLISHED_PATTERN, schedule(14, refresh=6)])
def test_orders_of_ours_are_taken(steps: tuple[FrameStep, ...]) -> None:
    check_steps(steps)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            (FrameStep(1, (0,), 0, 0),),
            "frame 1: got a reference to frame 0, expected one of the frames computed",
        ),
        ((FrameStep(0, (), 0, 0), FrameStep(0, (), 0, 0)), "frame 0: got it twice, expected each frame once"),
        ((FrameStep(0, (), -1, 0),), "frame 0: got kind -1, expected 0..2"),
        ((FrameStep(0, (), 3, 0),), "frame 0: got kind 3, expected 0..2"),
    ],
)
def test_an_order_that_cannot_be_followed_is_refused(steps: tuple[FrameStep, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_steps(steps)
