"""Reading a whole store back, against the rows that were written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dejavu.retrieval.collect import StoredSetting, find_kept, list_settings, look_up, read_frames
from dejavu.retrieval.search import Moment, MomentConfig
from dejavu.storage.setting import Setting
from dejavu.storage.store import Store, write_json
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig

DENSE = Setting(OriginalConfig(), "dense0", "tower")
NOTE = {"method": "original", "label": "dense", "config": {"method": "original"}, "backbone": "embedded"}


def write(store: Store, setting_id: str, clip: str, content: str, frames: range, value: float) -> None:
    rows = len(frames)
    flat = np.full(4 * rows, value, np.float16)
    flat[::4] = list(frames)
    table = pa.table(
        {
            "content_id": [content] * rows,
            "clip_id": [clip] * rows,
            "frame": pa.array(list(frames), pa.int32()),
            "seconds": pa.array([frame / 2 for frame in frames]),
            "reuse_rate": pa.array(np.zeros(rows, np.float32)),
            "flops": pa.array(np.zeros(rows)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), 4),
        }
    )
    store.write_embeddings(setting_id, table, [f"{content}:{frames.start}+{rows}"])


def test_frames_are_in_order_and_each_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "dense0", "b", "content-b", range(3, 5), 1)  # the second piece before the first
    write(store, "dense0", "b", "content-b", range(3), 1)
    write(store, "dense0", "a", "content-a", range(2), 2)
    write(store, "dense0", "a", "content-a", range(1), 2)  # the same frame in another shard, as after a kill
    frames = read_frames(store, [DENSE])
    found = {
        clip: frames.frame_R[start:stop].tolist()
        for clip, start, stop in zip(frames.clip_ids, frames.starts, frames.starts[1:], strict=False)
    }
    assert found == {"a": [0, 1], "b": [0, 1, 2, 3, 4]}
    assert dict(zip(frames.clip_ids, frames.content_ids, strict=True)) == {"a": "content-a", "b": "content-b"}
    np.testing.assert_array_equal(frames.seconds_R, frames.frame_R / 2)
    np.testing.assert_array_equal(frames.embedding_RE[:, 0], frames.frame_R)  # each row is its own frame's


def test_of_two_settings_the_first_is_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "old", "a", "content-a", range(2), 7)
    write(store, "old", "b", "content-b", range(2), 7)
    write(store, "new", "a", "content-a", range(2), 5)
    frames = read_frames(store, [Setting(OriginalConfig(), "new"), Setting(OriginalConfig(), "old")])
    assert frames.embedding_RE[:, 1].tolist() == [5, 5, 7, 7]


def test_a_store_without_a_frame_is_refused(tmp_path: Path) -> None:
    for _ in range(2):  # without a shard, and with an empty one
        with pytest.raises(ValueError, match=r"embeddings: got widths \[\]"):
            read_frames(Store(tmp_path), [DENSE])
        write(Store(tmp_path), "dense0", "a", "content-a", range(0), 1)


def test_settings_are_listed_by_their_notes_and_only_with_embeddings(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "abc", "a", "content-a", range(2), 1)
    store.describe("abc", NOTE | {"backbone_identity": "tower"})
    store.describe("empty", NOTE | {"backbone_identity": "tower"})
    write(store, "named", "a", "content-a", range(2), 1)
    k16 = StoredSetting(Setting(EventfulConfig(refreshed_tokens=16), "named", "tower"), "embedded")
    absent = StoredSetting(Setting(EventfulConfig(refreshed_tokens=8), "absent", "tower"), "embedded")
    listed = list_settings(store, [k16, absent])
    assert {one.setting.setting_id: one.name for one in listed} == {"abc": "original dense", "named": "eventful k=16"}
    assert {one.setting.backbone_identity for one in listed} == {"tower"}


RECORD = {"path": "mp4/x.mp4", "num_frames": 9, "frame_px": 64, "fps": 2.0, "duration_s": 4.5, "codec_metadata": True}
HIT = Moment(clip_id="a", content_id="content-a", frame=5, seconds=2.5, start_s=2.0, end_s=3.0, cosine=0.5, score=0.4)


def record(store: Store, name: str, content: str, **more: str) -> None:
    write_json(store.transcoded_path(name), {"clip_id": name, "content_id": content, **RECORD, **more})


def test_a_hit_on_a_concealed_frame_is_marked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record(store, "a", "content-a", concealed="4-6")
    record(store, "b", "content-b", concealed="")
    record(store, "old", "content-old")
    found = [HIT, replace(HIT, frame=7), replace(HIT, content_id="content-b"), replace(HIT, content_id="content-old")]
    assert [one.concealed for one in look_up(found, store)] == [True, False, False, False]
    assert not any(one.gone for one in look_up(found, store))


def test_a_video_is_gone_where_none_of_its_content_is_left(tmp_path: Path) -> None:
    store, kept, lost = Store(tmp_path), tmp_path / "kept.mp4", str(tmp_path / "lost.mp4")
    kept.touch()
    record(store, "a", "content-a", source=lost)
    record(store, "b", "content-b", source=lost)
    record(store, "b2", "content-b", source=str(kept))
    record(store, "old", "content-old")
    found = [replace(HIT, content_id=f"content-{name}") for name in ("a", "b", "old", "unknown")]
    assert [one.gone for one in look_up(found, store)] == [True, False, False, False]


def test_as_many_are_found_where_gone_ones_are_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index, name in enumerate("abcdef"):
        write(store, "dense0", name, f"content-{name}", range(1), 10 - index)
        record(store, name, f"content-{name}", source=str(tmp_path / f"{name}.mp4"))
        if name in "bdf":
            (tmp_path / f"{name}.mp4").touch()
    frames, query_E = read_frames(store, [DENSE]), np.array([0.0, 1.0, 0.0, 0.0])
    for top, expected in ((1, "b"), (2, "bd"), (10, "bdf")):
        found = find_kept(frames, query_E, MomentConfig(top=top, usual_share=0.0), store)
        assert "".join(sorted(hit.clip_id for hit in found)) == expected
