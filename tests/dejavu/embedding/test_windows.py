"""Windows of the training pattern, cut from clips whose frames carry their own number."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dejavu.embedding import windows
from dejavu.embedding.batch import EmbedConfig, EmbedContext, Segment
from dejavu.embedding.windows import WindowStream, num_windows
from dejavu.records import Transcoded
from dejavu.storage.store import Store
from dejavu.video.decode import DecodedFrames
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN


def clip(name: str, num_frames: int) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=name,
        path=f"mp4/{name}.mp4",
        num_frames=num_frames,
        frame_px=16,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame i is filled with i, and so is its codec grid; a clip called `broken` cannot be read."""

    def decode(segment: Segment, embedding: EmbedContext) -> DecodedFrames:
        if segment.clip_id == "broken":
            raise ValueError("broken: got no video")
        number_F = np.arange(segment.start, segment.start + segment.num_frames)
        return DecodedFrames(
            rgb_FHWC=np.broadcast_to(number_F[:, None, None, None], (len(number_F), 16, 16, 3)).astype(np.uint8),
            codec_F4PP=np.broadcast_to(number_F[:, None, None, None] + 1, (len(number_F), 4, 1, 1)).astype(np.float32),
            seconds_F=number_F / 2,
            picture_types="",
            codec_metadata=True,
        )

    monkeypatch.setattr(windows, "decode_segment", decode)


def stream(tmp_path: Path, *clips: Transcoded) -> WindowStream:
    teacher = {one.clip_id: np.arange(one.num_frames, dtype=np.float32)[:, None] for one in clips}
    return WindowStream(clips, teacher, EmbedContext("embedded", Store(tmp_path), EmbedConfig()))


@pytest.mark.usefixtures("numbered")
def test_frames_teacher_and_codec_history_belong_together(tmp_path: Path) -> None:
    for window in islice(stream(tmp_path, clip("a", 30), clip("b", 13)).windows(0), 12):
        number_F = window.rgb_FHWC[:, 0, 0, 0].astype(int)
        assert (number_F - number_F[0]).tolist() == [step.frame for step in PUBLISHED_PATTERN]
        assert window.teacher_FE[:, 0].tolist() == number_F.tolist()
        for number, history_4TPP in zip(number_F, window.codec_F4TPP, strict=True):
            # Oldest first; zeros before the clip began. Grids hold the frame's number plus one.
            expected = [max(0, past + 1) for past in range(number - 3, number + 1)]
            assert history_4TPP[0, :, 0, 0].tolist() == expected


@pytest.mark.usefixtures("numbered")
def test_a_clip_that_cannot_be_read_is_skipped_and_counted_once(tmp_path: Path) -> None:
    found = stream(tmp_path, clip("a", 13), clip("broken", 13))
    assert len(list(islice(found.windows(0), 5))) == 5
    assert [failure.reason for failure in found.failures.values()] == ["broken: got no video"]
    with pytest.raises(ValueError, match="none of which can be read"):
        next(stream(tmp_path, clip("broken", 13)).windows(0))


@pytest.mark.usefixtures("numbered")
def test_the_same_seed_gives_the_same_windows_and_another_one_others(tmp_path: Path) -> None:
    def firsts(seed: int) -> list[int]:
        return [int(w.rgb_FHWC[0, 0, 0, 0]) for w in islice(stream(tmp_path, clip("a", 60)).windows(seed), 20)]

    assert firsts(3) == firsts(3)
    assert firsts(3) != firsts(4)


@pytest.mark.usefixtures("numbered")
def test_a_batch_mixes_clips(tmp_path: Path) -> None:
    some = stream(tmp_path, *(clip(str(number), 97) for number in range(40)))
    for name in some.teacher:
        some.teacher[name][:] = int(name)
    batch = [int(window.teacher_FE[0, 0]) for window in islice(some.shuffled(0), 8)]
    assert len(set(batch)) > 4
    assert len({int(window.teacher_FE[0, 0]) for window in islice(some.windows(0), 8)}) == 1


@pytest.mark.usefixtures("numbered")
def test_all_clips_are_seen_before_one_comes_again(tmp_path: Path) -> None:
    some = stream(tmp_path, *(clip(name, 97) for name in "abcdef"))
    for number, name in enumerate("abcdef"):
        some.teacher[name][:] = number
    seen = [int(window.teacher_FE[0, 0]) for window in islice(some.windows(0, per_visit=1), 6)]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("numbered")
@pytest.mark.parametrize("count", [1, 5, 100])
def test_workers_share_the_first_windows(tmp_path: Path, count: int) -> None:
    clips = [clip(name, 40) for name in "abc"]

    def firsts(rank: int = 0, world: int = 1) -> list[float]:
        return [float(one.teacher_FE.sum()) for one in stream(tmp_path, *clips).first(count, rank, world)]

    every = firsts()
    assert len(every) == min(count, num_windows(clips))
    for world in (2, 3):
        assert [firsts(rank, world) for rank in range(world)] == [every[rank::world] for rank in range(world)]


def test_an_epoch_counts_the_windows_of_one_visit() -> None:
    assert num_windows([clip("a", 13), clip("b", 24), clip("c", 25), clip("d", 10_000)]) == 1 + 1 + 2 + 8
