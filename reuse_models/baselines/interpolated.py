"""Frames that a method leaves out, blended from the computed ones before and behind them (ours).

A video that is there as a whole need not show an old embedding until the next one comes: what lies between two
computed frames is taken to move evenly from one to the other. It costs nothing but waiting for the later one; behind a
stream's last computed frame that one stands.

Shapes: B streams, G frames that the method inside completes, F of them and those that waited, W that wait, L layers,
N tokens, E embedding width, K units of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.method import Chunk, Encoded, Method, Work


@dataclass(slots=True)
class _Waiting:
    """Frames of one stream that were left out since its last computed one: no work was done for them."""

    before_E: Tensor | None = None
    """The last computed one's embedding."""
    reuse_WLN: Tensor | None = None


@dataclass(slots=True)
class InterpolatedMemory:
    """What the method inside remembers, and the frames that wait for their later neighbour."""

    inner: Any
    waiting: list[_Waiting]


class Interpolated:
    """A method that leaves frames out, and what lies between those that it computes."""

    def __init__(self, inner: Method) -> None:
        self.inner, self.vit = inner, inner.vit

    def start(self, num_streams: int) -> InterpolatedMemory:
        return InterpolatedMemory(self.inner.start(num_streams), [_Waiting() for _ in range(num_streams)])

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: InterpolatedMemory) -> Encoded:
        """Embed the next frames; those left out are completed with the next computed one, or when their stream ends."""
        inner = self.inner.encode(chunk, memory.inner)
        memory.inner = inner.memory
        completed = [
            _completed(waiting, inner.embeddings[stream], inner.reuse[stream], inner.work[stream], chunk.ended[stream])
            for stream, waiting in enumerate(memory.waiting)
        ]
        return Encoded(
            embeddings=tuple(embeddings_FE for embeddings_FE, _, _ in completed),
            reuse=tuple(reuse_FLN for _, reuse_FLN, _ in completed),
            work=tuple(work for _, _, work in completed),
            memory=memory,
        )


def _completed(
    waiting: _Waiting, embeddings_GE: Tensor, reuse_GLN: Tensor, work: Work, ended: bool
) -> tuple[Tensor, Tensor, Work]:
    """Return embeddings, reuse and work of the frames of a stream that are complete now, and keep the others."""
    reuse_FLN = reuse_GLN if waiting.reuse_WLN is None else torch.cat([waiting.reuse_WLN, reuse_GLN])
    num_waited = len(reuse_FLN) - len(reuse_GLN)
    known_FE = F.pad(embeddings_GE, (0, 0, num_waited, 0))
    units = {part: F.pad(units_GK, (0, 0, num_waited, 0)) for part, units_GK in work.parts.items()}
    computed = torch.stack([units_FK.any(1) for units_FK in units.values()]).any(0).nonzero()[:, 0].tolist()
    blended_FE = _blended(waiting.before_E, known_FE, computed)
    done = len(known_FE) if ended else (computed[-1] + 1 if computed else 0)
    if computed:
        waiting.before_E = known_FE[computed[-1]].clone()
    waiting.reuse_WLN = reuse_FLN[done:].clone()
    return blended_FE[:done], reuse_FLN[:done], Work({part: units_FK[:done] for part, units_FK in units.items()})


def _blended(before_E: Tensor | None, known_FE: Tensor, computed: Sequence[int]) -> Tensor:
    """Return [F, E]: computed frames as they are, others between their neighbours; the last one stands to the end.

    Args:
        before_E: The last one computed before these, one frame before the first; None at the beginning of a stream,
            whose first frame is computed.
        known_FE: Embeddings; those of frames that were not computed mean nothing.
        computed: Which those are, ascending.
    """
    blended_FE = known_FE.clone()
    at = [*([] if before_E is None else [-1]), *computed]
    ends_XE = [*([] if before_E is None else [before_E]), *known_FE[computed]]
    if not at:  # no frame has come yet
        return blended_FE
    for index, (start, end) in enumerate(zip(at, [*at[1:], len(known_FE)], strict=True)):
        first, last = ends_XE[index], ends_XE[min(index + 1, len(at) - 1)]
        for place in range(start + 1, end):
            blended_FE[place] = torch.lerp(first, last, (place - start) / (end - start))
    return blended_FE
