from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dejavu.embedding import stored as read
from dejavu.embedding.batch import EmbedConfig, EmbedContext, Segment, cut
from dejavu.embedding.encode import EncodedSegment, to_table
from dejavu.embedding.stored import read_beside, read_embeddings
from dejavu.records import Transcoded
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from dejavu.video.decode import DecodedFrames
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig

WIDTH = 3


def clip(name: str, num_frames: int, content: str) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=content,
        path=f"mp4/{content}.mp4",
        num_frames=num_frames,
        frame_px=128,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )


def values(segment: Segment) -> NDArray[np.float32]:
    frames = np.arange(segment.start, segment.start + segment.num_frames, dtype=np.float32)
    return np.stack([frames, frames + 0.5, -frames], axis=1)


def write(embedding: EmbedContext, setting: Setting, segments: list[Segment]) -> None:
    frames = [
        DecodedFrames(
            rgb_FHWC=np.zeros((s.num_frames, 1, 1, 3), np.uint8),
            codec_F4PP=np.zeros((s.num_frames, 4, 1, 1), np.float32),
            seconds_F=np.arange(s.start, s.start + s.num_frames) / 2,
            picture_types="I" * s.num_frames,
            codec_metadata=True,
        )
        for s in segments
    ]
    encoded = [
        EncodedSegment(values(s), np.full(s.num_frames, 0.25, np.float32), np.full(s.num_frames, 1e9, np.float64))
        for s in segments
    ]
    table = to_table(segments, frames, encoded)
    embedding.store.write_embeddings(setting.setting_id, table, [s.unit_id for s in segments])


def test_what_was_written_reads_back_clip_by_clip_in_order(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig(segment_frames=4))
    setting = name_setting(OriginalConfig(), "tower", embedding.config.shaping())
    clips = [clip("long", 10, "c1"), clip("same", 10, "c1"), clip("half", 8, "c2"), clip("none", 2, "c3")]
    segments = {(s.content_id, s.start): s for s in cut(clips, 4)}
    write(embedding, setting, [segments["c1", 8], segments["c1", 0]])
    write(embedding, setting, [segments["c2", 0], segments["c1", 4]])

    found = read_embeddings(embedding, setting, clips)
    # The second half of c2 and all of c3 are lacking: a clip is complete or absent.
    assert set(found) == {"long", "same"}
    long = found["long"]
    np.testing.assert_array_equal(long.embeddings_FE[:, 0], np.arange(10))
    np.testing.assert_array_equal(long.seconds_F, np.arange(10) / 2)
    assert (long.reuse_rate_F == 0.25).all()
    assert (long.flops_F == 1e9).all()


def test_a_segment_in_two_shards_is_read_once(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    setting = name_setting(OriginalConfig(), "tower", embedding.config.shaping())
    one, two = cut([clip("a", 3, "c1"), clip("b", 3, "c2")], 512)
    write(embedding, setting, [one])
    write(embedding, setting, [one, two])
    found = read_embeddings(embedding, setting, [clip("a", 3, "c1"), clip("b", 3, "c2")])
    assert {name: len(frames.seconds_F) for name, frames in found.items()} == {"a": 3, "b": 3}


def test_settings_are_read_beside_original_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    original, skip = (name_setting(config, "tower", {}) for config in (OriginalConfig(), FrameSkipConfig(every=2)))
    clips = [clip("z", 3, "c1"), clip("b", 3, "c2"), clip("c", 9, "c3"), clip("a", 3, "c1")]
    pieces = cut(clips, 512)
    write(embedding, original, pieces)
    write(embedding, skip, pieces[:2])
    monkeypatch.setattr(read, "PART_FRAMES", 6)
    parts = list(read_beside(embedding, [skip, original], original, clips))
    # The order is that of contents, equal ones side by side; a clip longer than a part is one of its own.
    expected = [
        (skip, ["a", "z"], ["a", "z"]),
        (original, ["a", "z"], ["a", "z"]),
        (skip, ["b"], ["b"]),
        (original, ["b"], ["b"]),
        (skip, [], ["c"]),
        (original, ["c"], ["c"]),
    ]
    assert [(setting, sorted(ours), sorted(dense)) for setting, ours, dense in parts] == expected
    whole = read_embeddings(embedding, original, clips)
    for _, ours, dense in parts:
        for name, frames in [*ours.items(), *dense.items()]:
            np.testing.assert_array_equal(frames.embeddings_FE, whole[name].embeddings_FE)


def test_concealed_frames_are_marked(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig(segment_frames=4))
    original = name_setting(OriginalConfig(), "tower", embedding.config.shaping())
    clips = [replace(clip("a", 7, "content-a"), concealed="2-3,6"), clip("b", 3, "content-b")]
    write(embedding, original, cut(clips, 4))
    found = read_embeddings(embedding, original, clips)
    assert np.flatnonzero(found["a"].concealed_F).tolist() == [2, 3, 6]
    assert not found["b"].concealed_F.any()
