"""Time exact search over random embeddings: `python jobs/benchmarks/retrieval.py [--num-frames 1000000] [--threads 2]`.

Each row of the table is one number of frames, with the time from a query to its moments once the frames are loaded.
With `--index`, frames that drift as those of videos do are written to a store, and search through an index is compared
with exact search: how long it takes to build, how long a query takes with all that it reads, and what it finds. This is
processor time, so that other work on the machine does not count.
"""

import _bootstrap_jobs  # noqa: F401

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dejavu.cluster.cluster import hardware
from dejavu.retrieval.search import Frames, MomentConfig, find_moments
from dejavu.storage.setting import Setting
from dejavu.retrieval.collect import read_frames
from dejavu.retrieval.frame_index import open_index
from dejavu.storage.store import Store
from reuse_models.baselines.original import OriginalConfig

MADE_AT_ONCE = 50_000
CLIPS_PER_SHARD = 8
MADE = Setting(OriginalConfig(), "made")


def make_frames(num_frames: int, width: int, frames_per_clip: int) -> Frames:
    """Return random embeddings, half precision, in clips of equal length."""
    rng = np.random.default_rng(0)
    embedding_RE = np.empty((num_frames, width), np.float16)
    for start in range(0, num_frames, MADE_AT_ONCE):
        rows = embedding_RE[start : start + MADE_AT_ONCE]
        rows[:] = rng.standard_normal(rows.shape, dtype=np.float32)
    starts = np.append(np.arange(0, num_frames, frames_per_clip), num_frames)
    frame_R = (np.arange(num_frames) % frames_per_clip).astype(np.int32)
    names = tuple(f"clip{index}" for index in range(len(starts) - 1))
    return Frames(names, names, starts, frame_R, frame_R / 2, embedding_RE)


def measure(frames: Frames, num_queries: int, threads: int) -> dict[str, Any]:
    """Answer different random queries one by one, after one that does not count; times are those of the clock."""
    torch.set_num_threads(threads)
    queries = np.random.default_rng(1).standard_normal((num_queries + 1, frames.width))
    spent = []
    for query_E in queries:
        begin = time.perf_counter()
        found = find_moments(frames, query_E, MomentConfig())
        spent.append(1e3 * (time.perf_counter() - begin))
        if not found:
            raise ValueError("search: got no moment, expected one or more; the frames are not as they should be")
    return {
        "num_frames": len(frames.seconds_R),
        "width": frames.width,
        "threads": threads,
        "num_queries": num_queries,
        "median_ms": statistics.median(spent[1:]),
        "worst_ms": max(spent[1:]),
        "embeddings_mb": frames.embedding_RE.nbytes / 1e6,
        "hardware": hardware(),
    }


def make_store(folder: Path, num_frames: int, width: int, frames_per_clip: int) -> Store:
    """Write frames that wander around a direction of their clip's own, in shards as the embed stage writes them."""
    store, rng = Store.open(folder), np.random.default_rng(0)
    frame_R = np.tile(np.arange(frames_per_clip, dtype=np.int32), CLIPS_PER_SHARD)
    for shard in range(-(-num_frames // len(frame_R))):
        centre_C1E = 3 * rng.standard_normal((CLIPS_PER_SHARD, 1, width), dtype=np.float32)
        steps_CFE = rng.standard_normal((CLIPS_PER_SHARD, frames_per_clip, width), dtype=np.float32)
        embedding_CFE = (centre_C1E + steps_CFE.cumsum(axis=1) / 4).astype(np.float16)
        clips = [f"clip{CLIPS_PER_SHARD * shard + index}" for index in range(CLIPS_PER_SHARD)]
        names = [clip for clip in clips for _ in range(frames_per_clip)]
        table = pa.table(
            {
                "content_id": names,
                "clip_id": names,
                "frame": frame_R,
                "seconds": frame_R / 2,
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding_CFE.reshape(-1)), width),
            }
        )
        store.write_embeddings(MADE.setting_id, table, [f"{clip}:0+{frames_per_clip}" for clip in clips])
    return store


def measure_index(store: Store, num_queries: int, threads: int) -> dict[str, Any]:
    """Make the index of a store, and answer queries that are like some frame, through it and exactly.

    In processor time: `median_ms` from a query's embedding to its moments (open the index, name clips, read their
    frames, search those), `read_all_ms` what exact search reads at each call, `exact_ms` once all frames are in memory.
    """
    torch.set_num_threads(threads)
    config, rng = MomentConfig(), np.random.default_rng(1)
    begun = time.process_time()
    open_index(store, [MADE], config.usual_share)
    made = time.process_time()
    every = read_frames(store, [MADE])
    read_all_s = time.process_time() - made
    asked = every.embedding_RE[rng.integers(len(every.seconds_R), size=num_queries + 1)].astype(np.float32)
    spent, exact, read, found = [], [], [], []
    for query_E in asked + 3 * rng.standard_normal(asked.shape):
        begin = time.process_time()
        likely = open_index(store, [MADE], config.usual_share).likely(query_E, config.top)
        some = read_frames(store, [MADE], likely)
        moments = find_moments(some, query_E, config)
        spent.append(1e3 * (time.process_time() - begin))
        begin = time.process_time()
        wanted = find_moments(every, query_E, config)
        exact.append(1e3 * (time.process_time() - begin))
        read.append(len(some.seconds_R) / len(every.seconds_R))
        places = {(moment.clip_id, moment.frame) for moment in moments}
        found.append(statistics.fmean((moment.clip_id, moment.frame) in places for moment in wanted))
    return {
        "num_frames": len(every.seconds_R),
        "width": every.width,
        "threads": threads,
        "num_queries": num_queries,
        "make_s": made - begun,
        "file_mb": sum(path.stat().st_size for path in (store.root / "nearest").glob("*/*")) / 1e6,
        "median_ms": statistics.median(spent[1:]),
        "worst_ms": max(spent[1:]),
        "read_all_ms": 1e3 * read_all_s,
        "exact_ms": statistics.median(exact[1:]),
        "read_share": statistics.fmean(read[1:]),  # of all frames
        "found_share": statistics.fmean(found[1:]),  # of exact search's moments
        "hardware": hardware(),
    }


def print_index(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each number of frames through an index and print the table."""
    heads = ("frames", "make s", "file MB", "median ms", "worst ms", "all read", "exact ms", "read", "found")
    shown = ("make_s", "file_mb", "median_ms", "worst_ms", "read_all_ms", "exact_ms")
    print("".join(f"{head:>11}" for head in heads))
    rows = []
    for num_frames in arguments.num_frames:
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder), num_frames, arguments.width, arguments.frames_per_clip)
            rows.append(row := measure_index(store, arguments.queries, arguments.threads))
        numbers = "".join(f"{row[name]:>11.1f}" for name in shown)
        print(f"{row['num_frames']:>11}{numbers}{row['read_share']:>11.1%}{row['found_share']:>11.1%}", flush=True)
    return rows


def main() -> None:
    """Measure each number of frames and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="one row each")
    parser.add_argument("--width", type=int, default=512, help="numbers per embedding")
    parser.add_argument("--frames-per-clip", type=int, default=120, help="number of frames per clip")
    parser.add_argument("--queries", type=int, default=15, help="number of queries that count")
    parser.add_argument("--threads", type=int, default=2, help="number of threads")
    parser.add_argument("--json", type=Path, help="JSON file for the rows")
    parser.add_argument("--index", action="store_true", help="compare search through an index with exact search")
    arguments = parser.parse_args()
    print(f"{hardware()}, {arguments.threads} threads, width {arguments.width}, median of {arguments.queries} queries")
    rows = print_index(arguments) if arguments.index else print_exact(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def print_exact(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each number of frames and print the table."""
    print(f"{'frames':>10}{'median ms':>12}{'worst ms':>12}{'MB':>8}")
    rows = []
    for num_frames in arguments.num_frames:
        frames = make_frames(num_frames, arguments.width, arguments.frames_per_clip)
        rows.append(row := measure(frames, arguments.queries, arguments.threads))
        times = f"{row['median_ms']:>12.1f}{row['worst_ms']:>12.1f}"
        print(f"{row['num_frames']:>10}{times}{row['embeddings_mb']:>8.0f}", flush=True)
        del frames
    return rows


if __name__ == "__main__":
    main()
