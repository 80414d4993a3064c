"""What every method is: frames of several streams in, embeddings and the work really done out.

A *boundary* lies between two layers: from one's output projection to the next one's q, k and v. A token reused there
skips what lies between.

Frames that belong together, from many to few:

    segment   what is embedded on its own and kept once it is done: a clip, or a part of a long one
    batch     segments that advance in lockstep, each as a *stream*
    chunk     the next frames of every stream: one call of `encode`
    GOP       a dense frame and those that refer to it, up to the next dense one (group of pictures)
    group     up to four frames of a GOP that are computed out of order, the last of them first
    pass      a group of each of several streams, through the tower together
    wave      the frames of a pass whose references are there already
    window    a training clip: the frames of one dense frame and three groups that a loss needs

Shapes: B streams, F frames of one stream in this call, G of them that are completed, N tokens (CLS first where there is
one), L layers, D width, E embedding width, P patches a side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from reuse_models.tower.vit import Vit


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next frames of B streams, which advance in lockstep and may end at different times."""

    pixels: tuple[Tensor, ...]
    """Per stream [F, 3, H, W], normalised for the tower; F differs between streams and may be 0."""
    codec: tuple[Tensor, ...] | None
    """Per stream [F, 4, P, P] float32: class, motion x, motion y, quantiser, as decoded; None if no method reads it."""
    ended: tuple[bool, ...]
    """Per stream: no frame follows this chunk."""

    @property
    def num_streams(self) -> int:
        """B."""
        return len(self.pixels)


@dataclass(slots=True)
class Work:
    """What was really executed, frame by frame: units put through each part of the tower or of a method's add-on.

    Each part maps to an int64 tensor [G, K] over the G frames it describes; K is L for a part that runs in every
    layer and 1 for one that runs once a frame. A unit is named in flops.py, the only place that turns units into FLOPs.
    """

    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What one call completed. A method may hold frames back until their group is full; order is display order."""

    embeddings: tuple[Tensor, ...]
    """Per stream [G, E] float32, not normalised: continues where the stream's last call ended."""
    reuse: tuple[Tensor, ...]
    """Per stream bool [G, L - 1, N]: of each token, whether what leads into layers 1..L-1 is an earlier frame's. All of
    a frame that shows an earlier embedding or a blend; none of CLS else, nor of methods that merge or drop tokens
    within a frame."""
    work: tuple[Work, ...]
    """Per stream, G rows in each part."""
    memory: Any
    """Pass to the next call. The one passed in must not be used again: it may have been updated in place."""


class Method(Protocol):
    """A way to embed frames. Holds weights and settings, never the state of a stream."""

    vit: Vit

    def start(self, num_streams: int) -> Any:
        """Return the memory of `num_streams` streams of which nothing has been seen."""
        ...

    def encode(self, chunk: Chunk, memory: Any) -> Encoded:
        """Embed the next frames.

        Raises:
            ValueError: A frame or codec grid does not fit the tower, or memory is for another number of streams.
        """
        ...


class MethodConfig(Protocol):
    """A frozen dataclass beside each method; `registry.METHODS` maps its `method` name to it."""

    method: ClassVar[str]

    @property
    def setting(self) -> str:
        """The knob as a person reads it, such as `k=64`; with `method` it names one row of pareto.csv."""
        ...

    def build(self, vit: Vit) -> Method:
        """Return the method on this tower.

        Raises:
            ValueError: The settings do not fit the tower, in one line.
        """
        ...


def reuse_rate(reuse: Tensor) -> Tensor:
    """Return [G]: tokens reused over all boundaries as a share of all tokens, CLS in the denominator (0..1)."""
    return reuse.to(torch.float32).mean(dim=(1, 2))
