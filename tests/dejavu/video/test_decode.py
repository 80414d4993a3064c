from __future__ import annotations

import gc
import threading
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest

from dejavu.video.decode import DecodedFrames, decode, decode_all
from dejavu.video.mp4 import TranscodeConfig, VideoError, probe, transcode
from dejavu.video.source import decoder_log


@pytest.fixture
def mp4(clip_64: Path, tmp_path: Path) -> Path:
    """A transcoded mp4 of 100 frames, 64 pixels a side, a key frame every 16."""
    config = TranscodeConfig(fps=10, key_frame_interval=16)
    transcode(clip_64, tmp_path / "clip.mp4", frame_px=64, config=config)
    return tmp_path / "clip.mp4"


def assert_same(left: DecodedFrames, right: DecodedFrames, frames: slice = slice(None)) -> None:
    """The first equals those frames of the second."""
    np.testing.assert_array_equal(left.rgb_FHWC, right.rgb_FHWC[frames])
    np.testing.assert_array_equal(left.codec_F4PP, right.codec_F4PP[frames])
    np.testing.assert_array_equal(left.seconds_F, right.seconds_F[frames])
    assert left.picture_types == right.picture_types[frames]


def test_the_pictures_are_pyav_s_own(mp4: Path) -> None:
    with av.open(str(mp4)) as container:
        expected = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)]
    decoded = decode_all(mp4)
    np.testing.assert_array_equal(decoded.rgb_FHWC, np.stack([picture for picture, _ in expected]))
    np.testing.assert_array_equal(decoded.seconds_F, [time for _, time in expected])
    assert decoded.rgb_FHWC.dtype == np.uint8
    assert (decoded.codec_F4PP.dtype, decoded.codec_F4PP.shape) == (np.float32, (100, 4, 4, 4))


@pytest.mark.parametrize("chunk_frames", [1, 3, 7, 64, 1000])
def test_the_size_of_the_pieces_changes_nothing(mp4: Path, chunk_frames: int) -> None:
    pieces = list(decode(mp4, chunk_frames=chunk_frames))
    assert [len(piece.seconds_F) for piece in pieces[:-1]] == [chunk_frames] * (len(pieces) - 1)
    whole = decode_all(mp4)
    begin = 0
    for piece in pieces:
        assert_same(piece, whole, slice(begin, begin + len(piece.seconds_F)))
        begin += len(piece.seconds_F)
    assert begin == 100


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 33, 96, 99])
@pytest.mark.parametrize("count", [1, 5, 40, None])
def test_a_segment_equals_that_part_of_the_whole(mp4: Path, start: int, count: int | None) -> None:
    segment = decode_all(mp4, start=start, count=count)
    stop = 100 if count is None else min(100, start + count)
    assert_same(segment, decode_all(mp4), slice(start, stop))


def test_a_far_segment_does_not_decode_what_lies_before(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavu.video import decode as module

    seen: list[int] = []
    plain = module._Reader.skip
    monkeypatch.setattr(module._Reader, "skip", lambda self, count: (seen.append(count), plain(self, count))[1])
    decode_all(mp4, start=90, count=2)
    assert seen == [90 - 80]


def test_nothing_lies_behind_the_end(mp4: Path) -> None:
    assert list(decode(mp4, start=100)) == []
    assert list(decode(mp4, start=10_000, count=3)) == []
    assert list(decode(mp4, count=0)) == []
    with pytest.raises(VideoError, match="no frame from 100"):
        decode_all(mp4, start=100)


def test_a_segment_of_an_uneven_video_is_right_too(make_video, source_video) -> None:
    pts_ms = [0, 100, 150, 1400, 1450, 3000, 3100]
    pictures = [np.full((32, 32, 3), 30 * index + 20, np.uint8) for index in range(7)]
    path = make_video(pictures, source_video(name="uneven.mp4", pts_ms=pts_ms))
    whole = decode_all(path)
    np.testing.assert_allclose(whole.seconds_F, np.array(pts_ms) / 1000, atol=2e-3)
    assert_same(decode_all(path, start=4, count=2), whole, slice(4, 6))


@pytest.mark.parametrize(
    ("codec", "name"), [("mpeg4", "a.mp4"), ("libvpx-vp9", "a.webm"), ("mjpeg", "a.avi"), ("mpeg2video", "a.mkv")]
)
def test_a_stream_without_metadata_gets_the_declared_fallback(make_video, source_video, codec: str, name: str) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    pictures = [np.full((48, 48, 3), 20 * index, np.uint8) for index in range(6)]
    path = make_video(pictures, source_video(name=name, codec=codec, pix_fmt=pix_fmt, options={}))
    decoded = decode_all(path)
    assert not decoded.codec_metadata
    assert decoded.codec_F4PP.shape == (6, 4, 3, 3)
    assert (decoded.codec_F4PP == np.array([2, 0, 0, 26])[:, None, None]).all()
    np.testing.assert_allclose(decoded.rgb_FHWC.mean(axis=(1, 2, 3)), np.arange(6) * 20, atol=3)
    if name == "a.mp4":
        assert not probe(path).codec_metadata


@pytest.mark.parametrize(("start", "count", "chunk_frames"), [(-1, None, 64), (0, -1, 64), (0, None, 0)])
def test_a_segment_that_cannot_be_is_refused_at_once(
    mp4: Path, start: int, count: int | None, chunk_frames: int
) -> None:
    with pytest.raises(ValueError, match=r"^segment: got .*, expected .*; "):
        decode(mp4, start=start, count=count, chunk_frames=chunk_frames)


@pytest.mark.parametrize("level", [None, av.logging.WARNING])
def test_the_log_level_is_put_back(mp4: Path, level: int | None) -> None:
    before = av.logging.get_level()
    try:
        av.logging.set_level(level)
        left, right = decode(mp4, chunk_frames=8), decode(mp4, chunk_frames=8)
        for _ in range(3):
            assert_same(next(left), next(right))
            assert av.logging.get_level() == level
        left.close()
        mp4.write_bytes(mp4.read_bytes()[:-200])
        with pytest.raises(VideoError):
            decode_all(mp4)
        assert av.logging.get_level() == level
    finally:
        av.logging.set_level(before)


def test_a_reader_left_half_way_blocks_nobody(mp4: Path) -> None:
    abandoned = decode(mp4, chunk_frames=8)
    next(abandoned)
    done = threading.Event()

    def read() -> None:
        decode_all(mp4)
        done.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join()


def test_threads_that_read_at_once_get_what_one_reader_gets(mp4: Path) -> None:
    expected = decode_all(mp4)
    wrong: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(5):
                begin = 0
                for piece in decode(mp4, chunk_frames=9):
                    assert_same(piece, expected, slice(begin, begin + len(piece.seconds_F)))
                    begin += len(piece.seconds_F)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_frames_are_given_back_without_the_garbage_collector(mp4: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        decode_all(mp4)
        assert not [found for found in gc.get_objects() if type(found) is av.VideoFrame]
    finally:
        gc.enable()


def flip(path: Path, at: slice) -> None:
    data = bytearray(path.read_bytes())
    data[at] = bytes(byte ^ 0xFF for byte in data[at])
    path.write_bytes(data)


def test_a_damaged_picture_is_told_and_not_concealed(mp4: Path) -> None:
    with av.open(str(mp4)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size > 100][2]
        place = packet.pos + packet.size // 2
    flip(mp4, slice(place, place + 30))
    with pytest.raises(VideoError, match=r"^clip.mp4: got .*, expected .*; "):
        decode_all(mp4)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.8])
def test_a_truncated_mp4_is_told(mp4: Path, kept: float) -> None:
    whole = mp4.read_bytes()
    mp4.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(VideoError, match=r"^clip.mp4: got .*, expected .*; "):
        decode_all(mp4)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such file"):
        decode_all(tmp_path / "absent.mp4")


def test_random_damage_gives_frames_or_one_clear_line(mp4: Path) -> None:
    whole = mp4.read_bytes()
    rng = np.random.default_rng(0)
    told: list[str] = []
    for _ in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, len(data), rng.integers(1, 20))] = rng.integers(0, 256)
        mp4.write_bytes(data.tobytes())
        try:
            list(decode(mp4))
        except VideoError as error:
            told.append(str(error))
    assert len(told) > 30
    assert not [line for line in told if "\n" in line]


def test_what_was_logged_of_another_file_is_not_held_against_this_one(mp4: Path) -> None:
    """PyAV keeps back messages that repeat, and would tell of them when the next one comes."""
    av.logging.set_skip_repeated(True)
    with decoder_log(av.logging.ERROR):
        for _ in range(3):
            av.logging.log(av.logging.ERROR, "h264", "co located POCs unavailable")
    with decoder_log(av.logging.INFO) as log:
        av.logging.log(av.logging.INFO, "h264", "fine")
    assert [text for _, _, text in log] == ["fine"]
    assert len(decode_all(mp4).seconds_F) == 100
