"""Agreement of neighbours: of a frame's nearest frames of other clips, how many stay when embeddings change.

What search and clustering feel: a cosine to Original says how far each embedding moved, this whether its neighbourhood
is still the same. The queries are frames of all clips, sampled evenly above MAX_QUERIES; the candidates are all frames
of the other clips, seen block by block.

Cost of one setting over N frames: 2 Q N E FLOPs, 3.1 TFLOP for a million frames of width 768. Memory: Q E numbers for
each setting that is searched (6 MB at that width), and arrays of QUERIES_AT_ONCE x FRAMES_AT_ONCE, 120 MB together.

Shapes: Q queries, F frames of a block, E embedding width, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dejavu.tasks.zero_shot import unit

NUM_NEIGHBOURS = 10
MIN_OTHERS = 5 * NUM_NEIGHBOURS
"""Frames that the other clips of every clip must have together: among fewer, chance alone keeps more than a fifth."""
MAX_QUERIES = 2048
QUERIES_AT_ONCE = 512
FRAMES_AT_ONCE = 8192

_STEPS = 2.0**20
"""Cosines are told apart in steps of a millionth, above the rounding of a product: of equal frames the first wins."""
_INDEX_BITS = 32

Keys = NDArray[np.int64]
"""Cosine in steps above, position below: the largest keys are the nearest frames, ties in the order of frames."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the nearest frames stayed, over the queries."""

    mean: float
    by_clip: Mapping[str, tuple[float, ...]]
    """Clip id -> the share that stayed of each of its queries, 0..1."""

    def of(self, clip_ids: Iterable[str]) -> tuple[list[float], list[str]]:
        """Return the shares of some clips, and beside them the clip of each: what the bootstrap draws from."""
        pairs = [(share, name) for name in clip_ids for share in self.by_clip.get(name, ())]
        return [share for share, _ in pairs], [name for _, name in pairs]


@dataclass(frozen=True, slots=True)
class Queries:
    """Which frames are asked about: the same under every setting."""

    frames_of: Mapping[str, NDArray[np.int64]]
    """Clip id -> its frames that are queries, ascending."""
    start_of: Mapping[str, int]
    """Clip id -> the position of its first frame among all frames."""


def choose_queries(num_frames_of: Mapping[str, int]) -> Queries | None:
    """Choose the frames that are asked about, of clips that differ in content: a copy would be everyone's nearest clip.

    Returns:
        None where the others of some clip have fewer than MIN_OTHERS frames together, as where there is one clip alone.
    """
    counts = list(num_frames_of.values())
    whole = sum(counts)
    if whole - max(counts, default=0) < MIN_OTHERS:
        return None
    num_queries = min(whole, MAX_QUERIES)
    position_Q = (2 * np.arange(num_queries, dtype=np.int64) + 1) * whole // (2 * num_queries)
    ends = np.cumsum(counts)
    starts = ends - counts
    frames_of, start_of = {}, {}
    for name, start, end in zip(num_frames_of, starts.tolist(), ends.tolist(), strict=True):
        first, last = np.searchsorted(position_Q, [start, end])
        frames_of[name], start_of[name] = position_Q[first:last] - start, start
    return Queries(frames_of, start_of)


class NeighbourSearch:
    """The nearest frames of other clips under one setting: first all clips are asked about, then all are seen."""

    def __init__(self, queries: Queries) -> None:
        self.queries = queries
        self._asked: dict[str, NDArray[np.float32]] = {}
        self._best: Keys | None = None
        self._clip_Q = np.repeat(
            list(queries.start_of.values()), [len(frames_Q) for frames_Q in queries.frames_of.values()]
        )
        """Of each query, the position of its clip's first frame, which names the clip."""

    def ask(self, clips: Mapping[str, NDArray[np.floating]]) -> None:
        """Take the queries out of some clips' embeddings [F, E]; clips that are not asked about are passed over."""
        for name in clips.keys() & self.queries.frames_of.keys():
            self._asked[name] = unit(clips[name][self.queries.frames_of[name]])

    def see(self, clips: Mapping[str, NDArray[np.floating]]) -> None:
        """Look for neighbours among some clips' frames; every clip once, and after all clips have been asked."""
        asked_QE = np.concatenate([self._asked[name] for name in self.queries.frames_of])
        if self._best is None:
            self._best = np.full((len(asked_QE), NUM_NEIGHBOURS), np.iinfo(np.int64).min)
        named = [(name, clips[name]) for name in self.queries.start_of if name in clips]
        for frames_FE, clip_F, position_F in self._blocks(named):
            for start in range(0, len(asked_QE), QUERIES_AT_ONCE):
                some = slice(start, start + QUERIES_AT_ONCE)
                cosine_QF = asked_QE[some] @ frames_FE.T
                cosine_QF[self._clip_Q[some, None] == clip_F] = -2.0
                key_QF = (np.rint(cosine_QF * np.float32(_STEPS)).astype(np.int64) << _INDEX_BITS) - position_F
                self._best[some] = _largest(np.concatenate([self._best[some], _largest(key_QF)], axis=1))

    def found(self) -> NDArray[np.int64]:
        """Return [Q, K], positions of the nearest frames in no order, when all clips were seen."""
        assert self._best is not None, "nothing was seen"
        position_QK: NDArray[np.int64] = -self._best & (2**_INDEX_BITS - 1)
        return position_QK

    def _blocks(
        self, clips: Iterable[tuple[str, NDArray[np.floating]]]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield directions, the clip of each and its position, FRAMES_AT_ONCE at most."""
        pieces: list[tuple[NDArray[np.float32], int, int]] = []
        held = 0
        for name, frames_FE in clips:
            for start in range(0, len(frames_FE), FRAMES_AT_ONCE):
                piece_FE = frames_FE[start : start + FRAMES_AT_ONCE]
                if held + len(piece_FE) > FRAMES_AT_ONCE:
                    yield _join(pieces)
                    pieces, held = [], 0
                pieces.append((unit(piece_FE), self.queries.start_of[name], start))
                held += len(piece_FE)
        if pieces:
            yield _join(pieces)


def agreement(ours: NeighbourSearch, dense: NeighbourSearch) -> Agreement:
    """Compare what two searches for the same queries have found: the share of dense's neighbours that ours has too."""
    kept_QKK = ours.found()[:, :, None] == dense.found()[:, None, :]
    share_Q = kept_QKK.any(axis=2).mean(axis=1)
    ends = np.cumsum([len(frames_Q) for frames_Q in ours.queries.frames_of.values()])
    parts = np.split(share_Q, ends[:-1])
    by_clip = {name: tuple(part.tolist()) for name, part in zip(ours.queries.frames_of, parts, strict=True)}
    return Agreement(mean=float(share_Q.mean()), by_clip=by_clip)


def _largest(key_QF: Keys) -> Keys:
    """Return the NUM_NEIGHBOURS largest keys of each query, fewer where there are fewer."""
    if key_QF.shape[1] <= NUM_NEIGHBOURS:
        return key_QF
    return np.partition(key_QF, -NUM_NEIGHBOURS, axis=1)[:, -NUM_NEIGHBOURS:]


def _join(
    pieces: list[tuple[NDArray[np.float32], int, int]],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    clip_F = [np.full(len(frames_FE), clip, np.int64) for frames_FE, clip, _ in pieces]
    position_F = [np.arange(clip + start, clip + start + len(frames_FE)) for frames_FE, clip, start in pieces]
    return np.concatenate([frames_FE for frames_FE, _, _ in pieces]), np.concatenate(clip_F), np.concatenate(position_F)
