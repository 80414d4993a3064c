"""Original: every frame through the whole tower.

Shapes: B streams, F frames of a stream, R frames of all streams, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from reuse_models.flops import dense_work
from reuse_models.lockstep import Record, check_chunk
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.vit import Vit

FRAMES_PER_BATCH = 16
"""Frames put through a frame-wise method at once: keeps ViT-L's widest buffer near 70 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalConfig:
    """Compute every token of every frame."""

    method: ClassVar[str] = "original"

    @property
    def setting(self) -> str:
        return "dense"

    def build(self, vit: Vit) -> Method:
        return Original(vit)


@dataclass(frozen=True, slots=True)
class StreamCount:
    """The memory of a method that keeps nothing: how many streams there are."""

    num_streams: int


class Original:
    """The dense tower behind the interface of all methods."""

    def __init__(self, vit: Vit) -> None:
        self.vit = vit

    def start(self, num_streams: int) -> StreamCount:
        return StreamCount(num_streams)

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: StreamCount) -> Encoded:
        check_chunk(chunk, self.vit, memory.num_streams)
        record = Record(self.vit.shape, chunk, self.vit.position.device)
        start = 0
        for pixels_F3HW in chunk.pixels:
            for batch_F3HW in torch.split(pixels_F3HW, FRAMES_PER_BATCH):
                rows = slice(start, start + len(batch_F3HW))
                record.embeddings_RE[rows] = self.vit(batch_F3HW).float()
                start = rows.stop
        record.add_dense(dense_work(self.vit.shape), slice(None))
        return record.encoded(memory)
