"""In which order frames are computed and which earlier frames each may refer to, as data (docs/methods.md).

A GOP is one dense frame and then groups of four: the 4th first, then the 2nd, the 1st and the 3rd. GOPs are
independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GROUP_SIZE = 4
NUM_KINDS = 3
PREVIOUS = -1
"""In a group's references: the last frame of the group before, or the dense frame of the GOP."""


@dataclass(frozen=True, slots=True)
class FrameStep:
    """One frame in computing order."""

    frame: int
    """Its number; in a group its offset 0..3 from the group's first frame in display order."""
    candidates: tuple[int, ...]
    """Frames it may refer to, in the order they were computed; none for a dense frame."""
    kind: int
    """0 refers to the last anchor alone, 1 and 2 lie between two references, 2 the closer ones."""
    group: int = 0
    """Counts groups within a stream; the dense frame of a GOP is a group of its own."""


GROUPS: dict[int, tuple[FrameStep, ...]] = {
    1: (FrameStep(0, (PREVIOUS,), 0),),
    2: (FrameStep(1, (PREVIOUS,), 0), FrameStep(0, (PREVIOUS, 1), 2)),
    3: (FrameStep(2, (PREVIOUS,), 0), FrameStep(1, (PREVIOUS, 2), 1), FrameStep(0, (PREVIOUS, 1), 2)),
    4: (
        FrameStep(3, (PREVIOUS,), 0),
        FrameStep(1, (PREVIOUS, 3), 1),
        FrameStep(0, (PREVIOUS, 1), 2),
        FrameStep(2, (3, 1), 2),
    ),
}
"""By group size. In a short tail the last frame takes the 4th's place. In a tail of two that frame is the 2nd as well,
and the 1st, between its neighbours, keeps its kind: as the artifact computes it after padding, without the pad."""

PUBLISHED_PATTERN: tuple[FrameStep, ...] = (
    FrameStep(0, (), 0, 0),
    FrameStep(4, (0,), 0, 1),
    FrameStep(8, (4,), 0, 2),
    FrameStep(12, (8,), 0, 3),
    FrameStep(10, (8, 12), 1, 3),
    FrameStep(11, (12, 10), 2, 3),
)
"""Frames of a training clip in computing order: three groups, of which the last is seen at each of its kinds."""

PATTERN_SPAN = 13
"""Consecutive frames that hold a pattern."""
PATTERN_STEP = 12
"""Frames between the starts of two training clips: the last anchor of one is the dense frame of the next."""


def check_refresh(refresh: int | None) -> None:
    """Refuse, by a ValueError, a refresh below 1, which no GOP can have; None is one long GOP."""
    if refresh is not None and refresh < 1:
        raise ValueError(f"refresh: got {refresh}, expected 1 or more frames, or none; pass none for one long GOP")


def gop_frames(num_frames: int, refresh: int | None) -> tuple[range, ...]:
    """Return the frame numbers of each GOP: one dense frame and up to `refresh` further ones.

    Raises:
        ValueError: refresh is below 1.
    """
    check_refresh(refresh)
    length = num_frames if refresh is None else refresh + 1
    return tuple(range(start, min(start + length, num_frames)) for start in range(0, num_frames, max(length, 1)))


def schedule(num_frames: int, refresh: int | None = None) -> tuple[FrameStep, ...]:
    """Return all frames of a stream in computing order.

    Raises:
        ValueError: refresh is below 1.
    """
    steps: list[FrameStep] = []
    group = 0
    for gop in gop_frames(num_frames, refresh):
        steps.append(FrameStep(gop.start, (), 0, group))
        previous = gop.start
        for start in range(gop.start + 1, gop.stop, GROUP_SIZE):
            size = min(GROUP_SIZE, gop.stop - start)
            group += 1
            for step in GROUPS[size]:
                candidates = tuple(previous if one == PREVIOUS else start + one for one in step.candidates)
                steps.append(FrameStep(start + step.frame, candidates, step.kind, group))
            previous = start + size - 1
        group += 1
    return tuple(steps)


def check_steps(steps: Sequence[FrameStep]) -> None:
    """Refuse an order in which a frame refers to one that was not computed before it.

    Raises:
        ValueError: A reference is missing or later, a frame comes twice, or a kind is outside 0..2.
    """
    computed: set[int] = set()
    for step in steps:
        missing = [one for one in step.candidates if one not in computed]
        if missing:
            raise ValueError(
                f"frame {step.frame}: got a reference to frame {missing[0]}, expected one of the frames computed "
                f"before it ({sorted(computed)}); put the reference first"
            )
        if step.frame in computed:
            raise ValueError(f"frame {step.frame}: got it twice, expected each frame once; drop one of them")
        if not 0 <= step.kind < NUM_KINDS:
            raise ValueError(f"frame {step.frame}: got kind {step.kind}, expected 0..2; give one of them")
        computed.add(step.frame)
