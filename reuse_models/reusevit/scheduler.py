"""Which frames go through the tower next: a state machine for each stream, without arithmetic.

A stream holds its frames until they can be computed. What comes next for it is one of three:

    wait        nothing is held, or fewer frames than its group takes while more may come
    dense       the frame at the front begins a GOP and is computed whole
    group       the one to four frames at the front are computed together, inside out (frame_order.py)

`Scheduler.schedule` returns the turns that can be taken now, each by streams of which the same comes next. Who has
taken one says so with `done`, which moves its streams on; then more may have become possible.

Shapes: T codec steps, P patches a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from reuse_models.reusevit.frame_order import GROUP_SIZE


@dataclass(frozen=True, slots=True)
class HeldFrame:
    """A frame that waits to be computed."""

    pixels_3HW: Tensor
    history_4TPP: Tensor
    """Codec grids up to it."""


@dataclass(slots=True)
class StreamState:
    """Where one stream stands."""

    held: list[HeldFrame] = field(default_factory=list)
    """Frames not yet computed, in display order."""
    next_frame: int = 0
    """Number of the first of them."""
    left_in_gop: int | None = 0
    """Frames before the next dense one; None for a GOP without end."""
    ended: bool = False
    """No frame follows those held."""
    before_T4PP: Tensor | None = None
    """The last codec grids seen, T - 1 of them."""

    def copy(self) -> StreamState:
        """Return the same state, to go on from separately."""
        return dataclasses.replace(self, held=list(self.held))


@dataclass(frozen=True, slots=True)
class Turn:
    """Streams that take their next frames together: a dense one each, or a group each."""

    streams: tuple[int, ...]
    sizes: tuple[int, ...]
    """Frames of each stream."""
    is_dense: bool


@dataclass(frozen=True, slots=True)
class Scheduler:
    """When frames are computed densely, and which go together."""

    refresh: int | None
    """Frames between dense ones; None for a GOP without end."""
    one_size: bool = False
    """Whether the groups of a turn must have one size."""

    def schedule(self, states: Sequence[StreamState], streams: Sequence[int]) -> list[Turn]:
        """Return the turns that these streams can take now: dense frames before groups; none where all wait."""
        dense = tuple(stream for stream in streams if states[stream].held and states[stream].left_in_gop == 0)
        if dense:
            return [Turn(dense, (1,) * len(dense), is_dense=True)]
        sizes = {stream: size for stream in streams if (size := self._next_group(states[stream]))}
        if not sizes:
            return []
        if not self.one_size:
            return [Turn(tuple(sizes), tuple(sizes.values()), is_dense=False)]
        by_size = {one: tuple(stream for stream, size in sizes.items() if size == one) for one in sizes.values()}
        return [Turn(some, (size,) * len(some), is_dense=False) for size, some in sorted(by_size.items(), reverse=True)]

    def num_ready(self, state: StreamState) -> int:
        """Return how many of a stream's frames can be computed now: all but those that wait for their group."""
        here = len(state.held)
        if state.ended or self.refresh is not None:  # what a short GOP leaves is soon a group of its own
            return here
        before_groups = int(here > 0 and state.left_in_gop == 0)
        return before_groups + (here - before_groups) // GROUP_SIZE * GROUP_SIZE

    def done(self, states: Sequence[StreamState], turn: Turn) -> None:
        """Move the streams of a turn on: its frames have been computed."""
        for stream, size in zip(turn.streams, turn.sizes, strict=True):
            state = states[stream]
            if turn.is_dense:
                state.left_in_gop = self.refresh
            elif state.left_in_gop is not None:
                state.left_in_gop -= size
            del state.held[:size]
            state.next_frame += size

    def _next_group(self, state: StreamState) -> int:
        """Return how many frames the next group of a stream has: all that it takes, or at the end what is left."""
        wanted = GROUP_SIZE if state.left_in_gop is None else min(GROUP_SIZE, state.left_in_gop)
        here = len(state.held)
        return wanted if here >= wanted else here * int(state.ended)
