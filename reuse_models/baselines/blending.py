"""Key frames through a method, which sees no others; the rest is blended from the two around it.

A video that is there as a whole need not show an old embedding until the next one comes. Blending costs nothing but
waiting for the later key frame; behind a stream's last one that one stands.

Shapes: B streams, F frames, W of them open, X key frames, C completed frames, S the tower's side, P patches a
side, L layers, N tokens (prefix first), E embedding width, K units of a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from reuse_models.method import Chunk, Encoded, Method, Work
from reuse_models.streams import check_chunk


class Shown(NamedTuple):
    """What a frame shows."""

    place: float
    """Among the key frames: 0 is the last one of before, 1 the next, 1.25 a quarter of the way from there to the one
    behind it."""
    is_key: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What a plan says of the frames that it had left open and the new ones behind them."""

    keys: list[int]
    """Which of them are key frames, ascending."""
    shown: list[Shown]
    """Of those that are decided now; the others, behind them, stay open."""


class Plan(Protocol):
    """Which frames of one stream are key frames."""

    @property
    def num_open(self) -> int:
        """Frames seen of which nothing is decided."""
        ...

    def decide(self, pixels_F3SS: Tensor, *, ended: bool) -> Decision:
        """Take the next frames; decide on all if none follows."""
        ...


P = TypeVar("P", bound=Plan)


@dataclass(slots=True)
class BlendedStream(Generic[P]):
    """One stream's plan, and its frames that are decided and wait for the method inside."""

    plan: P
    num_pending: int = 0
    """Key frames that were passed on and are not completed."""
    waiting: list[Shown] = field(default_factory=list)
    """Places from the last completed key frame on."""

    def add(self, decision: Decision, *, ended: bool) -> None:
        """Take what was decided."""
        self.waiting += [Shown(place + self.num_pending, is_key) for place, is_key in decision.shown]
        self.num_pending += len(decision.keys)
        if ended:  # nothing lies behind the last key frame
            self.waiting = [Shown(min(place, self.num_pending), is_key) for place, is_key in self.waiting]

    def complete(self, num_keys: int) -> list[Shown]:
        """Return the frames that are complete once so many more key frames are."""
        num_frames = next((at for at, (place, _) in enumerate(self.waiting) if place > num_keys), len(self.waiting))
        done, waiting = self.waiting[:num_frames], self.waiting[num_frames:]
        self.waiting = [Shown(place - num_keys, is_key) for place, is_key in waiting]
        self.num_pending -= num_keys
        return done


@dataclass(slots=True)
class BlendedMemory(Generic[P]):
    """What the method inside remembers, and each stream's frames that wait."""

    inner: Any
    last_BE: Tensor
    """The embeddings of the last completed key frames."""
    open_BW3SS: Tensor
    open_BW4PP: Tensor
    """Pixels and codec grids of the frames that plans left open."""
    streams: list[BlendedStream[P]]


class Blended(Generic[P]):
    """Passes key frames on to a method inside, and blends the embeddings of the rest.

    Args:
        inner: The method.
        start_plan: Returns the plan of a new stream.
        most_open: Frames that a plan may leave open.
    """

    def __init__(self, inner: Method, start_plan: Callable[[], P], most_open: int) -> None:
        self.inner, self.start_plan, self.most_open, self.vit = inner, start_plan, most_open, inner.vit

    def start(self, num_streams: int) -> BlendedMemory[P]:
        shape, like = self.vit.shape, self.vit.position
        held = (num_streams, self.most_open)
        pixels = (3, shape.image_px, shape.image_px)
        grids = (4, shape.patches_per_side, shape.patches_per_side)
        return BlendedMemory(
            self.inner.start(num_streams),
            like.new_zeros(num_streams, shape.embed_dim, dtype=torch.float32),
            like.new_empty(*held, *pixels, dtype=torch.promote_types(like.dtype, torch.float32)),
            like.new_empty(*held, *grids, dtype=torch.float32),
            [BlendedStream(self.start_plan()) for _ in range(num_streams)],
        )

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: BlendedMemory[P]) -> Encoded:
        """Embed the next frames: those of a stream may wait until what follows them is known."""
        check_chunk(chunk, self.vit, len(memory.streams))
        inner = self.inner.encode(_pass_on(chunk, memory), memory.inner)
        memory.inner = inner.memory
        embeddings, reuse, work = [], [], []
        for stream, of_stream in enumerate(memory.streams):
            known_XE = torch.cat([memory.last_BE[stream : stream + 1], inner.embeddings[stream]])
            memory.last_BE[stream] = known_XE[-1]
            shown = of_stream.complete(len(known_XE) - 1)
            place_C = torch.tensor([one.place for one in shown], dtype=known_XE.dtype, device=known_XE.device)
            is_key_C = torch.tensor([one.is_key for one in shown], dtype=torch.bool)
            before_CE, behind_CE = known_XE[place_C.floor().long()], known_XE[place_C.ceil().long()]
            embeddings.append(torch.lerp(before_CE, behind_CE, place_C.frac()[:, None]))
            reuse_CLN = _spread(inner.reuse[stream], is_key_C)
            reuse_CLN[~is_key_C.to(reuse_CLN.device), :, self.vit.shape.num_prefix :] = True  # every patch
            reuse.append(reuse_CLN)
            units = inner.work[stream].parts
            work.append(Work({part: _spread(units_XK, is_key_C) for part, units_XK in units.items()}))
        return Encoded(tuple(embeddings), tuple(reuse), tuple(work), memory)


def _pass_on(chunk: Chunk, memory: BlendedMemory[P]) -> Chunk:
    """Return the key frames that are decided now; what is still open replaces what was."""
    pixels, codec = [], []
    for stream, of_stream in enumerate(memory.streams):
        num_open, ended = of_stream.plan.num_open, chunk.ended[stream]
        decision = of_stream.plan.decide(chunk.pixels[stream], ended=ended)
        of_stream.add(decision, ended=ended)
        pixels.append(_take_keys(memory.open_BW3SS[stream], num_open, chunk.pixels[stream], decision))
        if chunk.codec is not None:
            codec.append(_take_keys(memory.open_BW4PP[stream], num_open, chunk.codec[stream], decision))
    return Chunk(tuple(pixels), None if chunk.codec is None else tuple(codec), chunk.ended)


def _take_keys(open_W: Tensor, num_open: int, new_F: Tensor, decision: Decision) -> Tensor:
    """Return the key frames among the open and the new frames; those that stay open are written to the beginning."""
    if not (num_open or len(decision.shown) < len(new_F)):
        return new_F[decision.keys]
    all_F = torch.cat([open_W[:num_open], new_F.to(open_W)])
    keys_X = all_F[decision.keys]
    still_open = all_F[len(decision.shown) :]
    open_W[: len(still_open)] = still_open
    return keys_X


def _spread(x_X: Tensor, is_key_C: Tensor) -> Tensor:
    """Return what there is of each key frame, zeros for the others."""
    x_C = x_X.new_zeros(len(is_key_C), *x_X.shape[1:])
    x_C[is_key_C.to(x_X.device)] = x_X
    return x_C
