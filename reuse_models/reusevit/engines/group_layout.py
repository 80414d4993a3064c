"""Which frames one pass holds, who may refer to whom, and in which waves they decide.

Shapes: S streams of the pass, F frames of all of them: stream after stream, each in computing order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reuse_models.reusevit.frame_order import GROUPS, NUM_KINDS, PREVIOUS

ANCHOR = -1
"""A reference to the stream's anchors, not to a frame of the pass."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Frames of one kind: they decide together, after the waves of smaller kinds."""

    kind: int
    frames_K: Tensor
    """int64 indices into F."""
    candidates: tuple[Tensor, ...]
    """One or two int64 [K]: frames of the pass, or ANCHOR; in computing order."""


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """A group of each of S streams, of one to four frames."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    """First frame of each stream in F."""
    slot_F: Tensor
    """int64: place of the frame's stream among the S streams."""
    offsets: tuple[int, ...]
    """Of each frame in F: its place in its group, in display order."""
    waves: tuple[Wave, ...]

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.offsets)


@lru_cache(maxsize=256)
def group_layout(sizes: tuple[int, ...], device: torch.device) -> GroupLayout:
    """Lay out groups of these sizes, 1..4, one a stream."""
    starts: list[int] = []
    offsets: list[int] = []
    slots: list[int] = []
    frames: list[list[int]] = [[] for _ in range(NUM_KINDS)]
    candidates: list[list[tuple[int, ...]]] = [[] for _ in range(NUM_KINDS)]
    for slot, size in enumerate(sizes):
        start = len(offsets)
        starts.append(start)
        place = {PREVIOUS: ANCHOR} | {step.frame: start + index for index, step in enumerate(GROUPS[size])}
        for step in GROUPS[size]:
            frames[step.kind].append(place[step.frame])
            candidates[step.kind].append(tuple(place[one] for one in step.candidates))
            offsets.append(step.frame)
            slots.append(slot)
    return GroupLayout(
        sizes=sizes,
        starts=tuple(starts),
        slot_F=torch.tensor(slots, device=device),
        offsets=tuple(offsets),
        waves=tuple(
            Wave(
                kind,
                torch.tensor(frames[kind], device=device),
                tuple(torch.tensor(column, device=device) for column in zip(*candidates[kind], strict=True)),
            )
            for kind in range(NUM_KINDS)
            if frames[kind]
        ),
    )
