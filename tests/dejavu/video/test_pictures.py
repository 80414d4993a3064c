"""Damage with a measure: what is concealed, counted, marked and refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from dejavu.records import from_ranges
from dejavu.video.decode import decode_all
from dejavu.video.film import open_film
from dejavu.video.mp4 import Mp4Info, TranscodeConfig, VideoError, transcode
from dejavu.video.pictures import Pictures, _BestTime
from tests.dejavu.video.conftest import MakeVideo, SourceVideo

CONFIG = TranscodeConfig()
NUM_PICTURES = 200
SOURCE = SourceVideo(options={"preset": "ultrafast", "g": "20"})


def sliding() -> list[np.ndarray]:
    """Return pictures of a texture that slides."""
    texture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return [np.roll(texture, index, axis=1) for index in range(NUM_PICTURES)]


@pytest.fixture
def clip(make_video: MakeVideo) -> Path:
    """Twenty seconds of a texture that slides, a key frame every two."""
    return make_video(sliding(), SOURCE)


def spoil(path: Path, numbers: Sequence[int]) -> None:
    """Write noise over these packets."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        place, size = packets[number].pos, packets[number].size
        data[place + 4 : place + size] = random.Random(number).randbytes(size - 4)
    path.write_bytes(data)


def made(source: Path, config: TranscodeConfig = CONFIG) -> Mp4Info:
    return transcode(source, source.with_name("out.mp4"), frame_px=64, config=config)


def test_a_damaged_picture_is_concealed_counted_and_what_is_seen_of_it_marked(clip: Path) -> None:
    spoil(clip, [47])
    info = made(clip)
    assert (info.num_frames, info.num_damaged, info.num_missing) == (40, 1, 0)
    assert info.damaged_share == pytest.approx(1 / NUM_PICTURES)
    # Pictures 47 to 59 are wrong; frame n shows picture 5 n + 2, and the next key frame is picture 60.
    assert from_ranges(info.concealed) == [9, 10, 11]
    frames = decode_all(clip.with_name("out.mp4"))
    np.testing.assert_array_equal(frames.seconds_F, np.arange(40) / 2)


def test_more_than_the_bound_is_refused_and_the_bound_is_a_setting(clip: Path) -> None:
    spoil(clip, range(21, 31))
    expected = r"^source.mp4: got 10 damaged \(.+\) and 0 missing of 200 pictures, expected at most 0.02 of them .*; "
    with pytest.raises(VideoError, match=expected):
        made(clip)
    assert not clip.with_name("out.mp4").exists()
    assert made(clip, TranscodeConfig(max_damaged_share=0.1)).num_damaged == 10


def test_damage_is_refused_where_that_is_asked_for(clip: Path) -> None:
    spoil(clip, [47])
    with pytest.raises(VideoError, match=r"^source.mp4: got .*, expected an intact video; "):
        made(clip, TranscodeConfig(damaged="refuse"))


def test_a_whole_video_is_not_marked(clip: Path) -> None:
    assert made(clip) == made(clip, TranscodeConfig(damaged="refuse")) == Mp4Info(40, 64, 2.0, 20.0, True)


@pytest.mark.parametrize(("num_cut", "is_used"), [(3, True), (8, False)])
def test_a_file_that_ends_early_is_used_up_to_there_under_the_same_bound(
    clip: Path, num_cut: int, is_used: bool
) -> None:
    early = clip.with_name("early.mp4")
    with av.open(str(clip)) as read, av.open(str(early), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    with av.open(str(early)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    early.write_bytes(early.read_bytes()[: places[-num_cut]])
    if not is_used:
        with pytest.raises(VideoError, match=r"missing of 200 pictures; it seems cut short"):
            made(early)
        return
    info = made(early)
    assert (info.num_missing, info.num_frames) == (num_cut, 39)
    assert num_cut <= info.damaged_share * NUM_PICTURES <= num_cut + 1


def test_nothing_but_damage_says_what_was_wrong(clip: Path) -> None:
    spoil(clip, range(NUM_PICTURES))
    with pytest.raises(VideoError, match=r"^source.mp4: got 198 damaged \(.+\) and 0 missing of 198 pictures"):
        made(clip)


def without(path: Path, first: int, last: int) -> bytes:
    """Return a file's bytes without those of some packets."""
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    return path.read_bytes()[: places[first]] + path.read_bytes()[places[last] :]


@pytest.mark.parametrize("bf", ["0", "3"])
def test_pictures_that_are_lost_on_the_way_are_damage(make_video: MakeVideo, bf: str) -> None:
    """A transport stream counts its packets: FFmpeg tells where some are missing, and the decoder does not."""
    whole = make_video(sliding(), replace(SOURCE, name="whole.ts", options={**SOURCE.options, "bf": bf}))
    assert made(whole) == Mp4Info(40, 64, 2.0, 20.0, True)
    expected = decode_all(whole.with_name("out.mp4")).rgb_FHWC.astype(int)
    whole.write_bytes(without(whole, 45, 49))
    info = made(whole)
    assert (info.num_damaged, info.num_frames) == (1, 40)
    shown = decode_all(whole.with_name("out.mp4")).rgb_FHWC
    wrong = [frame for frame in range(40) if np.abs(shown[frame] - expected[frame]).mean() > 5]
    assert wrong
    assert set(wrong) <= set(from_ranges(info.concealed)) <= set(range(8, 12))
    with pytest.raises(VideoError, match="got a damaged picture"):
        made(whole, TranscodeConfig(damaged="refuse"))


@pytest.mark.parametrize("at", [47, 52])
def test_a_part_of_a_picture_that_is_lost_is_one_damaged_picture(make_video: MakeVideo, at: int) -> None:
    """FFmpeg says so of the packet before it, and the decoder of itself."""
    whole = make_video(
        sliding(), replace(SOURCE, name="whole.ts", options={"preset": "ultrafast", "g": "20", "crf": "10"})
    )
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    assert places[at + 1] - places[at] >= 3 * 188
    data, cut = whole.read_bytes(), places[at] + 188
    whole.write_bytes(data[:cut] + data[cut + 188 :])
    info = made(whole)
    assert info.num_damaged == 1
    assert from_ranges(info.concealed) == [frame for frame in (9, 10, 11) if 5 * frame + 2 >= at]


def test_what_was_recorded_after_the_damage_is_not_marked(make_video: MakeVideo, tmp_path: Path) -> None:
    """A clock that begins again does not keep it from its end, a key frame."""
    part = make_video(sliding(), replace(SOURCE, name="part.ts"))
    (tmp_path / "joined.ts").write_bytes(without(part, 190, 192) + part.read_bytes())
    info = made(tmp_path / "joined.ts")
    assert info.num_frames == 80
    assert from_ranges(info.concealed) == [38, 39]


def test_a_picture_that_comes_late_is_believed_when_it_was_decoded() -> None:
    """After a hole decoders hand out an old picture among new ones."""
    best_time = _BestTime("mpegts", "h264")
    frames = [(150, 149), (151, 150), (212, 211), (152, 212), (213, 213), (214, 214), (None, 215), (216, None)]
    found = [best_time(SimpleNamespace(pts=pts, dts=dts)) for pts, dts in frames]  # type: ignore[arg-type]
    assert found == [150, 151, 212, 212, 213, 214, 215, 216]


@pytest.mark.parametrize(
    ("codec", "packets", "frames", "expected"),
    [
        # Three B-frames and a pyramid: packets are decoded in the order 0 4 2 1 3 of what is shown.
        ("h264", [(1, 0), (2, 1), (3, 2)], [(1, 2), (4, 3), (3, 4), (5, 5), (2, 6)], [0, 1, 2, 3, 4]),
        # Two pictures are shown before the first key frame, and refer to one that is not there: left out.
        ("mpeg4", [(1, 0), (2, 1), (3, 2), (4, 3)], [(1, 3), (4, 4), (6, 5), (5, 6)], [2, 3, 4, 5]),
        ("mpeg4", [(0, 0)], [(0, 0), (1, 1)], [0, 1]),  # no B-frames
        ("vc1", [(None, 0), (None, 1)], [(None, 1), (None, 2), (None, None)], [0, 1, None]),
    ],
)
def test_times_of_decoding_become_times_of_showing(
    codec: str,
    packets: list[tuple[int | None, int]],
    frames: list[tuple[int | None, int | None]],
    expected: list[int | None],
) -> None:
    best_time = _BestTime("avi", codec)
    for pts, dts in packets:
        best_time.feed(SimpleNamespace(pts=pts, dts=dts))  # type: ignore[arg-type]
    assert [best_time(SimpleNamespace(pts=pts, dts=dts)) for pts, dts in frames] == expected  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- empty packets
def drop_bytes(source: Path, target: Path, numbers: Sequence[int]) -> None:
    """Copy a film, these packets without their bytes: the picture before stays, as Theora says it."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            kept = av.Packet(0) if number in numbers else packet
            if kept is not packet:
                kept.pts, kept.dts, kept.duration = packet.pts, packet.dts, packet.duration
                kept.time_base = packet.time_base
            kept.stream = stream
            out.mux(kept)


@pytest.mark.parametrize("numbers", [range(170, 200), range(50, 80), [0, 1], [10, 30, 50]])
def test_a_packet_without_bytes_repeats_the_picture_before(
    make_video: MakeVideo, tmp_path: Path, numbers: Sequence[int]
) -> None:
    pictures = [np.full((48, 64, 3), 20 + index, np.uint8) for index in range(NUM_PICTURES)]
    source = make_video(pictures, replace(SOURCE, name="whole.nut", codec="mjpeg", pix_fmt="yuvj420p", options={}))
    drop_bytes(source, tmp_path / "empty.nut", numbers)
    with av.open(str(tmp_path / "empty.nut")) as container:
        num_empty = sum(packet.size == 0 and packet.pts is not None for packet in container.demux(video=0))
    assert num_empty == len(numbers)
    info = made(tmp_path / "empty.nut")
    assert info == Mp4Info(40, 64, 2.0, 20.0, True)
    shown = [5 * frame + 2 for frame in range(40)]
    kept = [index for index in range(NUM_PICTURES) if index not in numbers]
    expected = [20 + max([index for index in kept if index <= number], default=kept[0]) for number in shown]
    np.testing.assert_allclose(decode_all(tmp_path / "out.mp4").rgb_FHWC.mean(axis=(1, 2, 3)), expected, atol=3)


def test_the_last_pictures_of_a_decoder_that_lags_are_there(make_video: MakeVideo) -> None:
    source = make_video(
        [np.full((48, 64, 3), 20 + index, np.uint8) for index in range(20)],
        replace(SOURCE, options={"preset": "veryfast", "bf": "3"}),
    )
    with open_film(source) as film:
        pictures = Pictures(source, film, conceals=True)
        told = [picture.told for picture in pictures]
    assert told == [Fraction(index, 10) for index in range(20)]
    assert (pictures.num_pictures, pictures.num_damaged) == (20, 0)
