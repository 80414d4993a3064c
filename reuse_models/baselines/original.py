"""Original: every frame through the whole tower; and `FrameByFrame`, of methods that keep nothing between frames.

Shapes: R frames of all streams, B of them at once, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Method, Work
from reuse_models.streams import Record, batches, check_chunk
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalConfig:
    """Compute every token of every frame."""

    method: ClassVar[str] = "original"

    @property
    def setting(self) -> str:
        return "dense"

    def build(self, vit: Vit) -> Method:
        return FrameByFrame(vit, dense_work(vit.shape))


class FrameByFrame:
    """Frames of all streams go through `embed` together, each at the same cost; here, through the whole tower."""

    def __init__(self, vit: Vit, work: Work) -> None:
        """Take the tower, and what one frame costs."""
        self.vit, self.work = vit, work

    def embed(self, frames_B3HW: Tensor) -> Tensor:
        """Return embedding_BE of frames that fit the tower."""
        embedding_BE: Tensor = self.vit(frames_B3HW)
        return embedding_BE

    def start(self, num_streams: int) -> int:
        return num_streams

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: int) -> Encoded:
        check_chunk(chunk, self.vit, memory)
        record = Record(self.vit.shape, chunk, self.vit.position.device)
        for rows, frames_B3HW in batches(chunk, range(record.num_rows), record.device):
            record.embeddings_RE[rows] = self.embed(frames_B3HW).float()
        record.add_dense(self.work, slice(None))
        return record.encoded(memory)
