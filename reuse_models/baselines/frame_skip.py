"""FrameSkip(n): embed every n-th frame, and repeat it or blend what lies between. What every sceptic asks for first.

Shapes: B streams, F frames of a stream, R frames of all streams, X of them computed, S the tower's side, E embedding
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from reuse_models.baselines.blending import Blended, Decision, Shown
from reuse_models.baselines.original import OriginalConfig
from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.streams import Record, batches, check_chunk
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSkipConfig:
    """Compute one frame in `every`; it stands for those that follow, or is blended with the next computed one."""

    method: ClassVar[str] = "frame_skip"
    every: int = 2
    """Frames per computed frame; 1 is Original."""
    interpolate: bool = False
    """Blend the frames between two computed ones from both, instead of repeating the former (ours)."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: got {self.every}, expected 1 or more frames; 1 computes all of them")

    @property
    def setting(self) -> str:
        return f"every={self.every}{' interpolated' if self.interpolate else ''}"

    def build(self, vit: Vit) -> Method:
        if self.interpolate:
            return Blended(OriginalConfig().build(vit), partial(EveryNthPlan, self.every), EveryNthPlan.num_open)
        return Skip(vit, none_seen, partial(every_nth, every=self.every))


S = TypeVar("S")


@dataclass(slots=True)
class SkipMemory(Generic[S]):
    """Per stream: what decides on its next frames, and the embedding that stands for the present one."""

    seen: S
    last_BE: Tensor


class Skip(Generic[S]):
    """Dense frames where `decide` says so, each of which stands for those that follow.

    Args:
        vit: The tower.
        start_seen: Returns what `decide` knows of so many streams before their first frames.
        decide: Says per stream and frame whether it is computed (a first one is), and brings what it knows up to date.
    """

    def __init__(
        self, vit: Vit, start_seen: Callable[[int], S], decide: Callable[[Chunk, S], list[list[bool]]]
    ) -> None:
        self.vit, self.start_seen, self.decide = vit, start_seen, decide

    def start(self, num_streams: int) -> SkipMemory[S]:
        return SkipMemory(self.start_seen(num_streams), start_last(self.vit, num_streams))

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: SkipMemory[S]) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.last_BE))
        return compute_or_repeat(self.vit, chunk, self.decide(chunk, memory.seen), memory.last_BE).encoded(memory)


def none_seen(num_streams: int) -> list[int]:
    """Return the number of frames seen of each of so many new streams."""
    return [0] * num_streams


def every_nth(chunk: Chunk, num_seen: list[int], every: int) -> list[list[bool]]:
    """Return, per stream and frame, whether its number is a multiple of `every`; count the frames as seen."""
    found = []
    for stream, pixels_F3HW in enumerate(chunk.pixels):
        first = num_seen[stream]
        num_seen[stream] = first + len(pixels_F3HW)
        found.append([number % every == 0 for number in range(first, num_seen[stream])])
    return found


def start_last(vit: Vit, num_streams: int) -> Tensor:
    """Return [B, E], what `compute_or_repeat` keeps of streams of which nothing has been seen."""
    return vit.position.new_zeros(num_streams, vit.shape.embed_dim).float()


def compute_or_repeat(vit: Vit, chunk: Chunk, computed: Sequence[Sequence[bool]], last_BE: Tensor) -> Record:
    """Put some frames of all streams through the tower together; each other one shows the last embedding before it.

    Args:
        vit: The tower.
        chunk: The frames.
        computed: Per stream and frame, whether it is computed; a stream's first frame of all must be.
        last_BE: Each stream's last embedding, brought up to date in place.
    """
    record = Record(vit.shape, chunk, vit.position.device)
    computed_R = [one for of_stream in computed for one in of_stream]
    rows = [row for row, one in enumerate(computed_R) if one]
    for place, frames_X3HW in batches(chunk, rows, record.device):
        record.embeddings_RE[rows[place]] = vit(frames_X3HW).float()
    record.add_dense(dense_work(vit.shape), rows)
    is_computed_R = torch.tensor(computed_R, dtype=torch.bool, device=record.device)
    record.reuse_RLN[:, :, vit.shape.num_prefix :] = ~is_computed_R[:, None, None]
    shown_R, ends_B = rows_shown(computed)
    known_XE = torch.cat([last_BE, record.embeddings_RE])
    record.embeddings_RE = known_XE[shown_R]
    last_BE.copy_(known_XE[ends_B])
    return record


def rows_shown(computed: Sequence[Sequence[bool]]) -> tuple[list[int], list[int]]:
    """Return what each frame shows, and each stream ends with: a row of B that came before, then of this chunk's R."""
    shown_R: list[int] = []
    ends_B: list[int] = []
    for stream, of_stream in enumerate(computed):
        shown = stream
        for one in of_stream:
            shown = len(computed) + len(shown_R) if one else shown
            shown_R.append(shown)
        ends_B.append(shown)
    return shown_R, ends_B


@dataclass(slots=True)
class EveryNthPlan:
    """Every n-th frame of one stream is a key frame; the others move evenly from one to the next (ours)."""

    every: int
    num_seen: int = 0
    num_open: ClassVar[int] = 0

    def decide(self, pixels_F3SS: Tensor, *, ended: bool) -> Decision:
        """As `Plan` says: frames are decided as they come."""
        numbers = range(self.num_seen, self.num_seen + len(pixels_F3SS))
        keys_before = -(-self.num_seen // self.every)
        self.num_seen += len(pixels_F3SS)
        return Decision(
            keys=[frame for frame, number in enumerate(numbers) if number % self.every == 0],
            shown=[Shown(number / self.every + 1 - keys_before, number % self.every == 0) for number in numbers],
        )
