"""Original: every frame through the whole tower.

Shapes: B streams, R frames of all streams, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from reuse_models.flops import dense_work
from reuse_models.lockstep import Record, StreamCount, batches, check_chunk
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalConfig:
    """Compute every token of every frame."""

    method: ClassVar[str] = "original"

    @property
    def setting(self) -> str:
        return "dense"

    def build(self, vit: Vit) -> Method:
        return Original(vit)


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
        for rows, frames_R3HW in batches(chunk, range(record.num_rows), record.device):
            record.embeddings_RE[rows] = self.vit(frames_R3HW).float()
        record.add_dense(dense_work(self.vit.shape), slice(None))
        return record.encoded(memory)
