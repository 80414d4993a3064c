"""The benchmark times what search really does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dejavu.retrieval.search import MomentConfig, find_moments


def test_a_planted_frame_is_found_and_a_row_is_measured() -> None:
    import retrieval

    frames = retrieval.make_frames(1000, 16, frames_per_clip=120)
    assert len(frames.clip_ids) == 9
    query_E = np.random.default_rng(3).standard_normal(16)
    frames.embedding_RE[777] = query_E
    frames = replace(frames)  # measured anew
    found = find_moments(frames, query_E, MomentConfig(top=1, usual_share=0))
    assert (found[0].clip_id, found[0].frame) == ("clip6", 57)
    threads = torch.get_num_threads()
    row = retrieval.measure(frames, num_queries=3, threads=1)
    torch.set_num_threads(threads)
    assert (row["num_frames"], row["num_queries"], row["embeddings_mb"]) == (1000, 3, 0.032)
    assert 0 < row["median_ms"] <= row["worst_ms"]


def test_an_index_is_measured_beside_exact_search(tmp_path: Path) -> None:
    import retrieval

    store = retrieval.make_store(tmp_path, num_frames=1000, width=16, frames_per_clip=40)
    threads = torch.get_num_threads()
    row = retrieval.measure_index(store, num_queries=3, threads=1)
    torch.set_num_threads(threads)
    assert (row["num_frames"], row["width"]) == (1280, 16)  # whole shards
    assert row["file_mb"] > 1280 * 16 / 1e6
    assert 0 < row["median_ms"] <= row["worst_ms"]
    assert row["found_share"] > 0.8
    assert 0 < row["read_share"] <= 1
