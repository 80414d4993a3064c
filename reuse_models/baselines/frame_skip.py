"""FrameSkip(n): embed every n-th frame, and repeat it or blend what lies between. What every sceptic asks for first.

Shapes: B streams, F frames of a stream, R frames of all streams, X of them computed, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reuse_models.baselines.interpolated import Interpolated
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
        method = FrameSkip(self, vit)
        return Interpolated(method) if self.interpolate else method


@dataclass(slots=True)
class SkipMemory:
    """Per stream: frames seen, and the embedding that stands for the present frame."""

    num_seen: list[int]
    last_BE: Tensor


class FrameSkip:
    """One dense frame in n."""

    def __init__(self, config: FrameSkipConfig, vit: Vit) -> None:
        self.config = config
        self.vit = vit

    def start(self, num_streams: int) -> SkipMemory:
        return SkipMemory([0] * num_streams, start_last(self.vit, num_streams))

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: SkipMemory) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.num_seen))
        computed = []
        for stream, pixels_F3HW in enumerate(chunk.pixels):
            first = memory.num_seen[stream]
            memory.num_seen[stream] = first + len(pixels_F3HW)
            computed.append([number % self.config.every == 0 for number in range(first, memory.num_seen[stream])])
        return compute_or_repeat(self.vit, chunk, computed, memory.last_BE).encoded(memory)


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
    # What a frame shows, and a stream ends with: a row of the last embeddings, followed by those of this chunk.
    shown_R: list[int] = []
    ends_B: list[int] = []
    for stream, of_stream in enumerate(computed):
        shown = stream
        for one in of_stream:
            shown = len(last_BE) + len(shown_R) if one else shown
            shown_R.append(shown)
        ends_B.append(shown)
    known_XE = torch.cat([last_BE, record.embeddings_RE])
    record.embeddings_RE = known_XE[shown_R]
    last_BE.copy_(known_XE[ends_B])
    return record
