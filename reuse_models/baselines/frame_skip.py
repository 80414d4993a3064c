"""FrameSkip(n): embed every n-th frame and repeat it. What every sceptic asks for first.

Shapes: B streams, R frames of all streams, X of them computed, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.streams import Record, batches, check_chunk
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSkipConfig:
    """Compute one frame in `every`, and let it stand for those that follow."""

    method: ClassVar[str] = "frame_skip"
    every: int = 2
    """Frames per computed frame; 1 is Original."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: got {self.every}, expected 1 or more frames; 1 computes all of them")

    @property
    def setting(self) -> str:
        return f"every={self.every}"

    def build(self, vit: Vit) -> Method:
        return FrameSkip(self, vit)


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
        return SkipMemory([0] * num_streams, self.vit.position.new_zeros(num_streams, self.vit.shape.embed_dim).float())

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: SkipMemory) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.num_seen))
        every = self.config.every
        record = Record(self.vit.shape, chunk, self.vit.position.device)
        num_seen_R, stream_R = _numbered(chunk, memory.num_seen)
        computed = [row for row, seen in enumerate(num_seen_R) if seen % every == 0]
        for place, frames_X3HW in batches(chunk, computed, record.device):
            record.embeddings_RE[computed[place]] = self.vit(frames_X3HW).float()
        record.add_dense(dense_work(self.vit.shape), computed)
        for row, (seen, stream) in enumerate(zip(num_seen_R, stream_R, strict=True)):
            if seen % every == 0:
                memory.last_BE[stream] = record.embeddings_RE[row]
            else:
                record.embeddings_RE[row] = memory.last_BE[stream]
                record.reuse_RLN[row, :, self.vit.shape.num_prefix :] = True
            memory.num_seen[stream] = seen + 1
        return record.encoded(memory)


def _numbered(chunk: Chunk, num_seen: list[int]) -> tuple[list[int], list[int]]:
    """Per row: the frame's number in its stream from the stream's start, and the stream."""
    numbered = [
        (num_seen[stream] + index, stream)
        for stream, pixels_F3HW in enumerate(chunk.pixels)
        for index in range(len(pixels_F3HW))
    ]
    return [number for number, _ in numbered], [stream for _, stream in numbered]
