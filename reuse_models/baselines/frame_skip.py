"""FrameSkip(n): embed every n-th frame, and repeat it or blend what lies between. What every sceptic asks for first.

Shapes: B streams, F frames of a stream, R frames of all streams, X of them computed, E embedding width; G frames that a
method inside completes, F of them and those that waited, W that wait, L layers, N tokens, K units of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Method, Work
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
        method = Skip(vit, none_seen, partial(every_nth, every=self.every))
        return Interpolated(method) if self.interpolate else method


S = TypeVar("S")


@dataclass(slots=True)
class SkipMemory(Generic[S]):
    """Per stream: what decides on its next frames, and the embedding that stands for the present one."""

    seen: S
    last_BE: Tensor


class Skip(Generic[S]):
    """Dense frames where `decide` says so, each of which stands for those that follow.

    Args:
        vit: The tower.
        start_seen: Returns what `decide` knows of so many streams before their first frames.
        decide: Says per stream and frame whether it is computed (a first one is), and brings what it knows up to date.
    """

    def __init__(
        self, vit: Vit, start_seen: Callable[[int], S], decide: Callable[[Chunk, S], list[list[bool]]]
    ) -> None:
        self.vit, self.start_seen, self.decide = vit, start_seen, decide

    def start(self, num_streams: int) -> SkipMemory[S]:
        return SkipMemory(self.start_seen(num_streams), start_last(self.vit, num_streams))

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: SkipMemory[S]) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.last_BE))
        return compute_or_repeat(self.vit, chunk, self.decide(chunk, memory.seen), memory.last_BE).encoded(memory)


def none_seen(num_streams: int) -> list[int]:
    """Return the number of frames seen of each of so many new streams."""
    return [0] * num_streams


def every_nth(chunk: Chunk, num_seen: list[int], every: int) -> list[list[bool]]:
    """Return, per stream and frame, whether its number is a multiple of `every`; count the frames as seen."""
    found = []
    for stream, pixels_F3HW in enumerate(chunk.pixels):
        first = num_seen[stream]
        num_seen[stream] = first + len(pixels_F3HW)
        found.append([number % every == 0 for number in range(first, num_seen[stream])])
    return found


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
    shown_R, ends_B = rows_shown(computed)
    known_XE = torch.cat([last_BE, record.embeddings_RE])
    record.embeddings_RE = known_XE[shown_R]
    last_BE.copy_(known_XE[ends_B])
    return record


def rows_shown(computed: Sequence[Sequence[bool]]) -> tuple[list[int], list[int]]:
    """Return what each frame shows, and each stream ends with: a row of B that came before, then of this chunk's R."""
    shown_R: list[int] = []
    ends_B: list[int] = []
    for stream, of_stream in enumerate(computed):
        shown = stream
        for one in of_stream:
            shown = len(computed) + len(shown_R) if one else shown
            shown_R.append(shown)
        ends_B.append(shown)
    return shown_R, ends_B


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
    """A method that leaves frames out, which are blended from the computed ones before and behind them (ours).

    A video that is there as a whole need not show an old embedding until the next one comes: what lies between two
    computed frames is taken to move evenly from one to the other. It costs nothing but waiting for the later one;
    behind a stream's last computed frame that one stands.
    """

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
