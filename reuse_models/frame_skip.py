"""FrameSkip(n): embed every n-th frame and repeat it. What every sceptic asks for first.

Shapes: B streams, F frames of a stream, S streams at a step, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reuse_models.flops import dense_work
from reuse_models.lockstep import Record, check_chunk
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.original import FRAMES_PER_BATCH
from reuse_models.vit import Vit


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
        start = 0
        for stream, pixels_F3HW in enumerate(chunk.pixels):
            num_frames, seen = len(pixels_F3HW), memory.num_seen[stream]
            first = -seen % every
            computed_GE = [
                self.vit(batch).float() for batch in torch.split(pixels_F3HW[first::every], FRAMES_PER_BATCH)
            ]
            known_GE = torch.cat([memory.last_BE[stream, None], *computed_GE])
            # Frame f shows the last computed one at or before it: known_GE[0] until the first of this chunk.
            source_F = (torch.arange(num_frames) - first).div(every, rounding_mode="floor") + 1
            record.embeddings_RE[start : start + num_frames] = known_GE[source_F]
            record.add_dense(dense_work(self.vit.shape), slice(start + first, start + num_frames, every))
            repeated_F = (torch.arange(num_frames) - first) % every != 0
            record.reuse_RLN[start : start + num_frames, :, int(self.vit.shape.has_cls) :] = repeated_F.to(
                record.reuse_RLN.device
            )[:, None, None]
            memory.last_BE[stream] = known_GE[-1]
            memory.num_seen[stream] = seen + num_frames
            start += num_frames
        return record.encoded(memory)
