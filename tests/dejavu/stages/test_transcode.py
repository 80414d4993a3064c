from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import dejavu.stages.transcode as stage
import dejavu.storage.store as store_module
from dejavu.records import Clip
from dejavu.storage.store import StorageError, Store, file_sha256, identity
from dejavu.video.decode import decode_all
from dejavu.video.mp4 import Mp4Info, TranscodeConfig
from dejavu.video.write import write_video

PX = 64


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the kernel over the rows without a cluster."""

    def plainly(kernel: Callable[[stage.Row], stage.Row], rows: list[stage.Row], **_: str) -> Iterator[stage.Row]:
        return map(kernel, rows)

    monkeypatch.setattr(stage, "spread", plainly)


def video(path: Path, seed: int = 0) -> Clip:
    texture = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    write_video(path, (np.roll(texture, index, axis=1) for index in range(12)), 6, 20)
    return Clip(clip_id=path.stem, path=str(path), split="test")


def test_what_is_done_is_not_done_again_and_what_changed_is(tmp_path: Path) -> None:
    store, config = Store(tmp_path / "store"), TranscodeConfig()
    clips = [video(tmp_path / "a.mp4", 0), video(tmp_path / "b.mp4", 1)]
    first = stage.transcode_clips(clips, store, config, PX)
    assert (first.num_made, len(first.clips)) == (2, 2)
    assert stage.transcode_clips(clips, store, config, PX).num_made == 0

    clips[0] = video(tmp_path / "a.mp4", 2)
    os.utime(tmp_path / "a.mp4", ns=(1, 1))
    again = stage.transcode_clips(clips, store, config, PX)
    assert again.num_made == 1
    assert again.clips["a"].content_id != first.clips["a"].content_id
    assert again.clips["b"] == first.clips["b"]
    assert stage.transcode_clips(clips, store, TranscodeConfig(crf=30), PX).num_made == 2


def test_a_narrower_view_is_another_mp4_and_the_whole_view_has_its_old_name(tmp_path: Path) -> None:
    store, config, clip = Store(tmp_path / "store"), TranscodeConfig(), video(tmp_path / "a.mp4")
    whole = stage.transcode_clips([clip], store, config, PX, view=1.0).clips["a"]
    stat = Path(clip.path).stat()
    shaping = {"fps": 2.0, "crf": 22.0, "preset": "slow", "key_frame_interval": 250}
    named = {"clip": "a", "bytes": stat.st_size, "ns": stat.st_mtime_ns, "px": PX, "config": shaping}
    assert stage.source_key(clip, config, PX) == stage.source_key(clip, config, PX, 1.0) == identity(named)
    assert whole.content_id == identity({"sha256": file_sha256(Path(clip.path)), "config": shaping, "px": PX})
    made = stage.transcode_clips([clip], store, config, PX, view=0.875)
    assert made.num_made == 1
    assert made.clips["a"].content_id != whole.content_id
    assert stage.transcode_clips([clip], store, config, PX, view=0.875).num_made == 0
    assert stage.transcode_clips([clip], store, config, PX, make=None).clips["a"] == whole
    frames = [decode_all(store.root / record.path, count=1).rgb_FHWC for record in (whole, made.clips["a"])]
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 10


def test_how_damage_is_borne_changes_no_name_and_a_gap_s_bound_does(tmp_path: Path) -> None:
    config = TranscodeConfig()
    strict = TranscodeConfig(damaged="refuse", max_damaged_share=0.5)
    assert strict.shaping() == config.shaping()
    assert TranscodeConfig(max_gap_s=5).shaping() == {**config.shaping(), "max_gap_s": 5}


def test_a_record_of_more_damage_than_is_borne_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    store, clips = Store(tmp_path / "store"), [Clip(clip_id="a", path=str(tmp_path / "a"), split="test")]

    def encode(source: Path, target: Path, config: TranscodeConfig, **_: object) -> Mp4Info:
        if not config.bears(0.015):
            raise ValueError("a: got 0.015, expected less; leave it out")
        target.write_bytes(source.read_bytes())
        return Mp4Info(
            num_frames=9, frame_px=PX, fps=2.0, duration_s=4.5, codec_metadata=True, num_damaged=3, damaged_share=0.015,
            concealed="4-6", remarks="a remark",
        )  # fmt: skip

    make = partial(stage.transcode_one, encode=encode)
    lenient, strict = TranscodeConfig(), TranscodeConfig(max_damaged_share=0.01)
    record = stage.transcode_clips(clips, store, lenient, PX, make=make).clips["a"]
    assert (record.num_damaged, record.concealed, record.remarks) == (3, "4-6", "a remark")
    assert stage.transcode_clips(clips, store, lenient, PX, make=None).clips == {"a": record}
    for other in (strict, TranscodeConfig(damaged="refuse")):
        refused = stage.transcode_clips(clips, store, other, PX, make=make)
        assert (refused.clips, len(refused.failures)) == ({}, 1)
    assert stage.transcode_clips(clips, store, lenient, PX, make=make).num_made == 0


def test_a_lost_mp4_is_made_again(tmp_path: Path) -> None:
    store, clips = Store(tmp_path / "store"), [video(tmp_path / "a.mp4")]
    record = stage.transcode_clips(clips, store, TranscodeConfig(), PX).clips["a"]
    (store.root / record.path).unlink()
    assert stage.transcode_clips(clips, store, TranscodeConfig(), PX).num_made == 1


def test_a_broken_clip_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    clips = [
        video(tmp_path / "a.mp4"),
        Clip(clip_id="text", path=str(tmp_path / "text.mp4"), split="test"),
        Clip(clip_id="gone", path=str(tmp_path / "gone.mp4"), split="test"),
    ]
    store = Store(tmp_path / "store")
    result = stage.transcode_clips(clips, store, TranscodeConfig(), PX)
    assert set(result.clips) == {"a"}
    assert {failure.clip_id: failure.stage for failure in store.failures()} == {
        "text": "transcode",
        "gone": "transcode",
    }
    assert all("\n" not in failure.reason for failure in result.failures)


def test_a_full_disk_ends_the_stage_and_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, clips = Store(tmp_path / "store"), [video(tmp_path / "a.mp4"), video(tmp_path / "b.mp4", 1)]
    stage.transcode_clips(clips[:1], store, TranscodeConfig(), PX)
    kept = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "write_json", full)
    monkeypatch.setattr(store_module.time, "sleep", lambda _: None)
    with pytest.raises(StorageError, match=r"No space left on device.* run the same command again"):
        stage.transcode_clips(clips, store, TranscodeConfig(), PX)
    monkeypatch.undo()
    monkeypatch.setattr(stage, "spread", lambda kernel, rows, **_: map(kernel, rows))
    assert stage.transcode_clips(clips, store, TranscodeConfig(), PX).num_made == 1
    assert all(path.read_bytes() == content for path, content in kept.items() if path.suffix == ".mp4")


def test_records_that_are_indexed_are_not_opened_and_one_made_again_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counting(path: Path) -> str:
        opened.append(path)
        return path.read_text(encoding="utf-8")

    def encode(num_frames: int) -> Callable[[stage.Row], stage.Row]:
        def write(source: Path, target: Path, **_: object) -> Mp4Info:
            target.write_bytes(source.read_bytes())
            return Mp4Info(num_frames=num_frames, frame_px=PX, fps=2.0, duration_s=6.0, codec_metadata=True)

        return partial(stage.transcode_one, encode=write)

    monkeypatch.setattr(store_module, "INDEX_AFTER", 1)
    monkeypatch.setattr(store_module, "_read_text", counting)
    store, config, clips = Store(tmp_path / "store"), TranscodeConfig(), []
    for name in "abc":
        (tmp_path / name).write_text(name)
        clips.append(Clip(clip_id=name, path=str(tmp_path / name), split="test"))
    first = stage.transcode_clips(clips, store, config, PX, make=encode(12))
    for _ in range(2):
        assert stage.transcode_clips(clips, store, config, PX, make=None).clips == first.clips
    assert len(opened) == 3

    (store.root / first.clips["a"].path).unlink()
    assert stage.transcode_clips(clips, store, config, PX, make=encode(13)).num_made == 1
    again = stage.transcode_clips(clips, store, config, PX, make=None).clips
    assert {name: record.num_frames for name, record in again.items()} == {"a": 13, "b": 12, "c": 12}


def test_equal_files_share_one_mp4(tmp_path: Path) -> None:
    clip = video(tmp_path / "a.mp4")
    copy = tmp_path / "b.mp4"
    copy.write_bytes(Path(clip.path).read_bytes())
    store = Store(tmp_path / "store")
    result = stage.transcode_clips(
        [clip, Clip(clip_id="b", path=str(copy), split="test")], store, TranscodeConfig(), PX
    )
    assert result.clips["a"].path == result.clips["b"].path
    assert len(list(store.mp4_dir.iterdir())) == 1
