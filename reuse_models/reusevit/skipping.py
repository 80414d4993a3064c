"""ReuseViT on the frames that have moved (ours): the others show the embedding of the last one that had.

A frame whose patches would nearly all be reused still pays for its attention; one that is hardly different from the
last one embedded need not be asked at all. Which frames those are is decided as in `baselines.adaptive_skip`.

Shapes: B streams, F frames of a stream, L layers, N tokens (prefix first), E embedding width, K units of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reuse_models.baselines.adaptive_skip import find_moved, nothing_computed
from reuse_models.method import Chunk, Encoded, Method, Work
from reuse_models.streams import check_chunk


@dataclass(slots=True)
class SkippingMemory:
    """What the method inside remembers, and what waits for it."""

    inner: Any
    computed_B3TT: Tensor
    """Thumbnails of the last frames that were passed on."""
    last_BE: Tensor
    """The embeddings that stand for what follows."""
    waiting: list[list[bool]] = field(default_factory=list)
    """Per stream, of the frames not completed yet: whether they were passed on."""


class Skipping:
    """Passes on what has moved, and repeats embeddings for the rest."""

    def __init__(self, inner: Method, threshold: float) -> None:
        self.inner, self.threshold, self.vit = inner, threshold, inner.vit

    def start(self, num_streams: int) -> SkippingMemory:
        last_BE = self.vit.position.new_zeros(num_streams, self.vit.shape.embed_dim).float()
        waiting: list[list[bool]] = [[] for _ in range(num_streams)]
        return SkippingMemory(self.inner.start(num_streams), nothing_computed(num_streams), last_BE, waiting)

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: SkippingMemory) -> Encoded:
        """Embed the next frames: those that the method inside holds back keep the ones behind them waiting."""
        check_chunk(chunk, self.vit, len(memory.waiting))
        moved = find_moved(chunk, memory.computed_B3TT, self.threshold)
        for waiting, of_stream in zip(memory.waiting, moved, strict=True):
            waiting.extend(of_stream)
        at = [[frame for frame, one in enumerate(of_stream) if one] for of_stream in moved]
        pixels = tuple(x[frames] for x, frames in zip(chunk.pixels, at, strict=True))
        codec = chunk.codec and tuple(x[frames] for x, frames in zip(chunk.codec, at, strict=True))
        inner = self.inner.encode(Chunk(pixels, codec, chunk.ended), memory.inner)
        memory.inner = inner.memory
        shown = [_shown(waiting, len(done)) for waiting, done in zip(memory.waiting, inner.embeddings, strict=True)]
        embeddings, reuse, work = [], [], []
        for stream, frames in enumerate(shown):
            known_XE = torch.cat([memory.last_BE[stream : stream + 1], inner.embeddings[stream]])
            place_G = torch.tensor([place for place, _ in frames], dtype=torch.int64, device=known_XE.device)
            passed_G = torch.tensor([one for _, one in frames], dtype=torch.bool)
            embeddings.append(known_XE[place_G])
            reuse_GbN = _spread(inner.reuse[stream], passed_G)
            reuse_GbN[~passed_G.to(reuse_GbN.device), :, self.vit.shape.num_prefix :] = True  # every patch
            reuse.append(reuse_GbN)
            units = inner.work[stream].parts
            work.append(Work({part: _spread(units_XK, passed_G) for part, units_XK in units.items()}))
            memory.last_BE[stream] = known_XE[place_G[-1]] if frames else known_XE[0]
            del memory.waiting[stream][: len(frames)]
        return Encoded(tuple(embeddings), tuple(reuse), tuple(work), memory)


def _shown(waiting: Sequence[bool], num_done: int) -> list[tuple[int, bool]]:
    """Return what completed frames show: which of [last, *done], and whether that is their own."""
    found: list[tuple[int, bool]] = []
    place = 0
    for passed in waiting:
        if passed and place == num_done:
            break
        place += passed
        found.append((place, passed))
    return found


def _spread(x_X: Tensor, passed_G: Tensor) -> Tensor:
    """Return what there is of each frame, zeros for those that were not passed on."""
    x_G = x_X.new_zeros(len(passed_G), *x_X.shape[1:])
    x_G[passed_G.to(x_X.device)] = x_X
    return x_G
