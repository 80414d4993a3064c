"""Time exact search over random embeddings: `python jobs/benchmark_search.py [--num-frames 1000000] [--threads 2]`.

A row of the table is one number of frames: once loaded, how long one query takes until its moments are there.
"""

import _bootstrap  # noqa: F401

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dejavu.cluster import hardware
from dejavu.search import Frames, MomentConfig, find_moments

MADE_AT_ONCE = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTime:
    """One row: milliseconds of wall clock over the queries."""

    num_frames: int
    width: int
    threads: int
    num_queries: int
    median_ms: float
    worst_ms: float
    embeddings_mb: float
    hardware: str


def make_frames(num_frames: int, width: int, frames_per_clip: int, seed: int = 0) -> Frames:
    """Return random embeddings, half precision, in clips of equal length."""
    rng = np.random.default_rng(seed)
    embedding_RE = np.empty((num_frames, width), np.float16)
    for start in range(0, num_frames, MADE_AT_ONCE):
        rows = embedding_RE[start : start + MADE_AT_ONCE]
        rows[:] = rng.standard_normal(rows.shape, dtype=np.float32)
    starts = np.append(np.arange(0, num_frames, frames_per_clip), num_frames)
    frame_R = (np.arange(num_frames) % frames_per_clip).astype(np.int32)
    names = tuple(f"clip{index}" for index in range(len(starts) - 1))
    return Frames(names, names, starts, frame_R, frame_R / 2, embedding_RE)


def measure(frames: Frames, num_queries: int, threads: int) -> SearchTime:
    """Answer different random queries one by one, after one that does not count."""
    torch.set_num_threads(threads)
    queries = np.random.default_rng(1).standard_normal((num_queries + 1, frames.width))
    spent = []
    for query_E in queries:
        begin = time.perf_counter()
        found = find_moments(frames, query_E, MomentConfig())
        spent.append(1e3 * (time.perf_counter() - begin))
        if not found:
            raise ValueError("search: got no moment, expected one or more; the frames are not as they should be")
    return SearchTime(
        num_frames=len(frames.seconds_R),
        width=frames.width,
        threads=threads,
        num_queries=num_queries,
        median_ms=statistics.median(spent[1:]),
        worst_ms=max(spent[1:]),
        embeddings_mb=frames.embedding_RE.nbytes / 1e6,
        hardware=hardware(),
    )


def main() -> None:
    """Measure each number of frames and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--frames-per-clip", type=int, default=120)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{hardware()}, {arguments.threads} threads, width {arguments.width}, median of {arguments.queries} queries")
    print(f"{'frames':>10}{'median ms':>12}{'worst ms':>12}{'MB':>8}")
    rows = []
    for num_frames in arguments.num_frames:
        frames = make_frames(num_frames, arguments.width, arguments.frames_per_clip)
        rows.append(row := measure(frames, arguments.queries, arguments.threads))
        print(f"{row.num_frames:>10}{row.median_ms:>12.1f}{row.worst_ms:>12.1f}{row.embeddings_mb:>8.0f}", flush=True)
        del frames
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
