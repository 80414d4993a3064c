"""Search through an index, against exact search over all frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dejavu.retrieval.collect import read_frames
from dejavu.retrieval.frame_index import FrameIndex, count_frames, open_index
from dejavu.retrieval.search import MomentConfig, find_moments
from dejavu.storage.setting import Setting
from dejavu.storage.store import Store
from reuse_models.baselines.original import OriginalConfig

DENSE = Setting(OriginalConfig(), "dense0", "tower")
NUM_FRAMES, WIDTH, SHARE = 50, 32, 0.4


def write(store: Store, clips: Sequence[int]) -> None:
    """One shard: frames that wander around a direction of their clip's own, as those of a video do."""
    parts = []
    for clip in clips:
        rng = np.random.default_rng(clip)
        steps_FE = rng.normal(size=(NUM_FRAMES, WIDTH))
        parts.append(3 * rng.normal(size=WIDTH) + np.cumsum(steps_FE, axis=0) / 2)
    names = [f"clip{clip}" for clip in clips for _ in range(NUM_FRAMES)]
    frame_R = np.tile(np.arange(NUM_FRAMES, dtype=np.int32), len(clips))
    flat = np.concatenate(parts).astype(np.float16).reshape(-1)
    table = pa.table(
        {
            "content_id": names,
            "clip_id": names,
            "frame": pa.array(frame_R),
            "seconds": pa.array(frame_R / 2),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), WIDTH),
        }
    )
    store.write_embeddings(DENSE.setting_id, table, [f"clip{clip}:0+{NUM_FRAMES}" for clip in clips])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """3,200 frames of 64 clips."""
    store = Store.open(tmp_path)
    for first in range(0, 64, 4):
        write(store, range(first, first + 4))
    return store


def queries(store: Store, count: int) -> NDArray[np.float64]:
    """What is like some frame, as a text is that tells of it."""
    rng = np.random.default_rng(9)
    embedding_RE = read_frames(store, [DENSE]).embedding_RE.astype(np.float64)
    return embedding_RE[rng.integers(len(embedding_RE), size=count)] + rng.normal(size=(count, WIDTH))


def lists_of(store: Store) -> list[Path]:
    return sorted((store.root / "nearest").glob("*/*.faiss"))


def test_nearly_all_moments_of_exact_search_are_found_from_few_clips(store: Store) -> None:
    config = MomentConfig(top=5, usual_share=SHARE)
    index = open_index(store, [DENSE], SHARE)
    every = read_frames(store, [DENSE])
    hits = shares = 0.0
    asked = queries(store, 20)
    for query_E in asked:
        likely = index.likely(query_E, config.top)
        some = read_frames(store, [DENSE], likely)
        assert set(some.content_ids) == set(likely.content_ids)
        expected = {(one.clip_id, one.frame): one for one in find_moments(every, query_E, config)}
        found = {(one.clip_id, one.frame): one for one in find_moments(some, query_E, config)}
        both = expected.keys() & found.keys()
        assert all(found[name] == expected[name] for name in both)  # scores and spans are exact
        hits += len(both) / len(expected)
        shares += len(some.seconds_R) / len(every.seconds_R)
    assert hits / len(asked) >= 0.95
    assert shares / len(asked) <= 0.6


def test_new_shards_are_added_and_old_lists_are_kept(store: Store) -> None:
    first = open_index(store, [DENSE], SHARE)
    files = lists_of(store)
    assert open_index(store, [DENSE], SHARE).covers == first.covers
    assert lists_of(store) == files  # nothing is new: nothing is written
    write(store, [1000])
    extended = open_index(store, [DENSE], SHARE)
    assert extended.lists.ntotal == count_frames(store, [DENSE]) == 65 * NUM_FRAMES
    assert extended.covers.num_trained == first.covers.num_trained == 64 * NUM_FRAMES
    assert len(lists_of(store)) == 1 != files
    assert names_of(extended, store, "clip1000") >= {"clip1000"}
    assert names_of(extended, store, "clip9") >= {"clip9"}


def names_of(index: FrameIndex, store: Store, clip: str) -> frozenset[str]:
    """Ask for a clip by one of its own frames."""
    frames = read_frames(store, [DENSE])
    row = int(frames.starts[frames.content_ids.index(clip)])
    return index.likely(frames.embedding_RE[row], 1).content_ids


def test_the_lists_are_made_anew_when_shards_are_gone_or_there_are_many_more(store: Store) -> None:
    open_index(store, [DENSE], SHARE)
    gone = sorted(store.embeddings_dir(DENSE.setting_id).glob("*.parquet"))[0]
    gone.unlink()
    smaller = open_index(store, [DENSE], SHARE)
    assert smaller.covers.num_trained == smaller.lists.ntotal == 60 * NUM_FRAMES
    for first in range(2000, 2064, 16):
        write(store, range(first, first + 16))
    larger = open_index(store, [DENSE], SHARE)
    assert larger.covers.num_trained == larger.lists.ntotal == 124 * NUM_FRAMES
    assert names_of(larger, store, "clip2063") >= {"clip2063"}


def test_a_lost_file_is_made_again_and_each_share_has_its_own(store: Store) -> None:
    open_index(store, [DENSE], SHARE)
    lists_of(store)[0].unlink()
    assert open_index(store, [DENSE], SHARE).lists.ntotal == 64 * NUM_FRAMES
    open_index(store, [DENSE], 0.0)
    assert len(lists_of(store)) == 2


def test_what_cannot_be_searched_is_refused(store: Store, tmp_path: Path) -> None:
    index = open_index(store, [DENSE], SHARE)
    for query_E in (np.zeros(WIDTH), np.ones(WIDTH - 1)):
        with pytest.raises(ValueError, match=rf"query: got an embedding \[{len(query_E)}\], expected \[{WIDTH}\]"):
            index.likely(query_E, 1)
    with pytest.raises(ValueError, match="index: got no frame"):
        open_index(Store.open(tmp_path / "empty"), [DENSE], SHARE)
