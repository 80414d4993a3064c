"""Exact search over frame embeddings: a query's best moments, each once.

Shapes: R frames of all clips (rows), E embedding width, F frames of one clip, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dejavu.tasks.zero_shot import USUAL_SHARE, span_around_peak

BLOCK_ROWS = 512
"""Rows widened to float32 at a time: a megabyte at 512 numbers a row, so that products read them from cache."""
FIRST_CANDIDATES = 64
"""Best frames looked at first for each moment wanted; the number grows fourfold until there are moments enough."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Embeddings of many clips in memory, in half precision as they are stored; rows of a clip follow one another."""

    clip_ids: tuple[str, ...]
    content_ids: tuple[str, ...]
    """Of the same clips."""
    starts: NDArray[np.int64]
    """[number of clips + 1]: rows starts[i] .. starts[i + 1] - 1 are clip i's, in display order."""
    frame_R: NDArray[np.int32]
    seconds_R: NDArray[np.float64]
    embedding_RE: NDArray[np.float16]
    length_R: NDArray[np.float32] = field(init=False)
    """Of each embedding; infinite where it is all zero or not finite, so that it has no direction."""

    def __post_init__(self) -> None:
        """Measure the embeddings once for all queries."""
        object.__setattr__(self, "length_R", _by_blocks(self.embedding_RE, partial(torch.linalg.vector_norm, dim=1)))
        self.length_R[~(np.isfinite(self.length_R) & (self.length_R > 0))] = np.inf

    @property
    def width(self) -> int:
        """E."""
        return int(self.embedding_RE.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where a clip answers a query best, with the frames around that do so nearly as well."""

    clip_id: str
    content_id: str
    frame: int
    """Of the transcoded clip, from 0."""
    seconds: float
    """Of the best frame."""
    start_s: float
    end_s: float
    cosine: float
    """Of the best frame to the query, -1..1."""
    score: float
    """The cosine, less a share of the clip's median cosine: what hits are ordered by."""
    concealed: bool = False
    """Whether the best frame shows what was not recorded, since the video is damaged there."""
    gone: bool = False
    """Whether the video is no longer where it was when it was transcoded, nor another of the same content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentConfig:
    """What counts as one moment."""

    top: int = 10
    """Moments wanted."""
    merge_s: float = 5.0
    """Frames of one clip so close to a better hit belong to it, in seconds."""
    usual_share: float = USUAL_SHARE
    """Share of a clip's median cosine that is taken off its frames' cosines, as zero-shot answers do, 0..1."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top: got {self.top}, expected 1 or more; ask for one hit at least")
        if not 0 <= self.merge_s < float("inf"):
            raise ValueError(f"--merge-s: got {self.merge_s}, expected 0 s or more; 0 merges nothing but a hit's span")
        if not 0 <= self.usual_share <= 1:
            raise ValueError(f"--usual-share: got {self.usual_share}, expected 0..1; 0 orders hits by the plain cosine")


def cosines(frames: Frames, query_E: ArrayLike) -> NDArray[np.float32]:
    """Return [R], the cosine of every frame to one query; -inf where a frame's embedding has no direction.

    Rows are widened block by block and multiplied while they are in cache: memory is read once, at half the bytes that
    float32 would need. Each thread has its own share of the rows, so that none waits for another before the end.

    Raises:
        ValueError: The query is of another width, or has no direction.
    """
    query = torch.as_tensor(np.asarray(query_E, dtype=np.float32))
    if query.shape != (frames.width,) or not torch.isfinite(query).all() or not query.any():
        raise ValueError(
            f"query: got an embedding {list(query.shape)}, expected [{frames.width}] with a direction, as the frames "
            "have; embed text and frames with one backbone"
        )
    dot_R = _by_blocks(frames.embedding_RE, partial(torch.mv, vec=query / query.norm()))
    return np.where(np.isfinite(frames.length_R), dot_R / frames.length_R, -np.inf)


def _by_blocks(rows_RE: NDArray[np.float16], kernel: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
    """Return [R]: kernel of [B, E] float32 gives [B]."""
    half_RE, result_R = torch.from_numpy(rows_RE), torch.empty(len(rows_RE))

    def work(first: int, stop: int) -> None:
        wide_BE = torch.empty(min(BLOCK_ROWS, stop - first), rows_RE.shape[1])
        for start in range(first, stop, BLOCK_ROWS):
            block_BE = half_RE[start : min(start + BLOCK_ROWS, stop)]
            result_R[start : start + len(block_BE)] = kernel(wide_BE[: len(block_BE)].copy_(block_BE))

    threads = torch.get_num_threads()
    shares = np.linspace(0, len(rows_RE), threads + 1).astype(int).tolist()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, shares[:-1], shares[1:]))
    finally:
        torch.set_num_threads(threads)  # the workers' setting is in part the whole process's
    return result_R.numpy()


def usual_cosines(frames: Frames, cosine_R: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return one number per clip, the median of its frames' cosines: how well the query fits it at any time."""
    num_frames = np.diff(frames.starts)
    clip_R = np.repeat(np.arange(len(num_frames)), num_frames)
    # Cosines lie in -1..1, so that one sort of clip and cosine in one number sorts each clip in its place.
    sorted_R = np.sort(4.0 * clip_R + np.maximum(cosine_R, -1.0))
    low, high = frames.starts[:-1] + (num_frames - 1) // 2, frames.starts[:-1] + num_frames // 2
    median: NDArray[np.float64] = (sorted_R[low] + sorted_R[high]) / 2 - 4.0 * np.arange(len(num_frames))
    return median


def find_moments(frames: Frames, query_E: ArrayLike, config: MomentConfig) -> list[Moment]:
    """Return the moments that fit a query best, best first.

    Raises:
        ValueError: The query does not fit the frames.
    """
    cosine_R = cosines(frames, query_E)
    if not config.usual_share:
        return best_moments(frames, cosine_R, cosine_R, config)
    usual_C = (config.usual_share * usual_cosines(frames, cosine_R)).astype(np.float32)
    return best_moments(frames, cosine_R - np.repeat(usual_C, np.diff(frames.starts)), cosine_R, config)


def best_moments(
    frames: Frames, score_R: NDArray[np.float32], cosine_R: NDArray[np.float32], config: MomentConfig
) -> list[Moment]:
    """Return the best moments, best first: hits of one clip that are close in time, or of one span, are one.

    Greedy non-maximum suppression: the best frame is a moment; frames of its clip within `merge_s` of it, or inside
    the span of frames around it that score nearly as well, are no moments of their own; and so on. Equal scores go by
    place in the collection; -inf is for a frame that is none.
    """
    moments: list[Moment] = []
    taken: dict[int, list[tuple[float, float]]] = {}
    for row in _best_first(score_R, config.top * FIRST_CANDIDATES):
        clip = int(np.searchsorted(frames.starts, row, side="right")) - 1
        seconds = float(frames.seconds_R[row])
        if any(start <= seconds <= end for start, end in taken.get(clip, ())):
            continue
        start_s, end_s = _span(frames, score_R, clip, row)
        reach = min(start_s, seconds - config.merge_s), max(end_s, seconds + config.merge_s)
        taken.setdefault(clip, []).append(reach)
        moments.append(
            Moment(
                clip_id=frames.clip_ids[clip],
                content_id=frames.content_ids[clip],
                frame=int(frames.frame_R[row]),
                seconds=seconds,
                start_s=start_s,
                end_s=end_s,
                cosine=float(cosine_R[row]),
                score=float(score_R[row]),
            )
        )
        if len(moments) == config.top:
            break
    return moments


def _span(frames: Frames, score_R: NDArray[np.float32], clip: int, row: int) -> tuple[float, float]:
    """Return the span around one hit, which need not be the clip's best: other moments of it are cut off half way."""
    first, stop = int(frames.starts[clip]), int(frames.starts[clip + 1])
    score_F = np.where(np.isfinite(score_R[first:stop]), score_R[first:stop], -2.0).astype(np.float32)
    peak = row - first
    # What scores higher than this hit belongs to a better one: the span ends there.
    higher = np.flatnonzero(score_F > score_F[peak])
    low = int(higher[higher < peak].max()) + 1 if (higher < peak).any() else 0
    high = int(higher[higher > peak].min()) if (higher > peak).any() else len(score_F)
    return span_around_peak(score_F[low:high], frames.seconds_R[first + low : first + high])


def _best_first(score_R: NDArray[np.float32], num_first: int) -> Iterator[int]:
    """Yield rows by falling score, equal ones by row; sorts no more than are asked for, in growing portions."""
    given, wanted, num_rows = 0, num_first, int(np.isfinite(score_R).sum())
    while given < num_rows:
        wanted = min(wanted, num_rows)
        least = np.partition(score_R, len(score_R) - wanted)[len(score_R) - wanted]
        found = np.flatnonzero(score_R >= least)
        ordered = found[np.argsort(-score_R[found], kind="stable")]
        yield from map(int, ordered[given:])
        given, wanted = len(ordered), 4 * len(ordered)
