"""Source files that are odd as real ones are; each makes the smallest of its kind."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.stream import Disposition
from av.video.frame import VideoFrame

from dejavu.video.decode import decode_all
from dejavu.video.film import Film, _own_duration, display_matrix, open_film
from dejavu.video.mp4 import Mp4Info, TranscodeConfig, VideoError, transcode
from dejavu.video.source import attached, demux
from tests.dejavu.video.conftest import MakeVideo, SourceVideo

CONFIG = TranscodeConfig()


def ramp(num_frames: int, first: int = 20) -> list[np.ndarray]:
    """Flat pictures, each a little brighter than the one before."""
    return [np.full((48, 64, 3), first + 2 * index, np.uint8) for index in range(num_frames)]


def seen(source: Path, config: TranscodeConfig = CONFIG) -> tuple[Mp4Info, np.ndarray, np.ndarray]:
    """Transcode; return what was made, each frame's seconds and brightness."""
    target = source.with_name("out.mp4")
    info = transcode(source, target, frame_px=64, config=config)
    frames = decode_all(target)
    return info, frames.seconds_F, frames.rgb_FHWC.mean(axis=(1, 2, 3))


# --------------------------------------------------------------------------------------------------------------- clocks
@pytest.mark.parametrize(("ending", "codec", "rate"), [("ts", "libx264", 10), ("mpg", "mpeg2video", 25)])
def test_two_recordings_one_behind_the_other_are_both_seen(
    make_video: MakeVideo, tmp_path: Path, ending: str, codec: str, rate: int
) -> None:
    options = {"preset": "ultrafast", "bf": "2"} if codec == "libx264" else {"bf": "2"}
    source = SourceVideo(codec=codec, rate=rate, options=options)
    parts = [
        make_video(ramp(3 * rate, first), replace(source, name=f"{first}.{ending}")).read_bytes() for first in (20, 60)
    ]
    (joined := tmp_path / f"joined.{ending}").write_bytes(b"".join(parts))
    info, seconds_F, level_F = seen(joined)
    np.testing.assert_array_equal(seconds_F, np.arange(12) / 2)
    np.testing.assert_allclose(level_F[6:] - level_F[:6], 40, atol=4)
    assert "goes back by 3.0 s: laid end to end" in info.remarks
    assert (info.num_damaged, info.num_missing) == (0, 0)


B_FRAMES = {"preset": "veryfast", "crf": "10", "bf": "3"}


@pytest.mark.parametrize("rate", [1, 5])
@pytest.mark.parametrize("ending", ["avi", "asf"])
def test_a_container_that_keeps_no_time_of_a_picture_has_them_in_order(
    make_video: MakeVideo, ending: str, rate: int
) -> None:
    source = make_video(ramp(10 * rate), SourceVideo(name=f"b.{ending}", rate=rate, options=B_FRAMES))
    info, seconds_F, level_F = seen(source)
    np.testing.assert_array_equal(seconds_F, np.arange(20) / 2)
    shown_F = np.floor((np.arange(20) + 0.5) / 2 * rate)
    np.testing.assert_allclose(level_F, 20 + 2 * shown_F, atol=4)
    assert info == Mp4Info(20, 64, 2.0, 10.0, True)


@pytest.mark.parametrize("rate", [10, 30])
def test_a_stream_without_a_container_lasts_as_its_packets_do(make_video: MakeVideo, rate: int) -> None:
    info, _, level_F = seen(make_video(ramp(3 * rate), SourceVideo(name="raw.h264", rate=rate, options=B_FRAMES)))
    assert info == Mp4Info(6, 64, 2.0, 3.0, True)
    np.testing.assert_allclose(level_F, 20 + rate * (np.arange(6) + 0.5), atol=5)


@pytest.mark.parametrize("jitter_ms", [0, 20])
def test_recordings_that_go_on_with_the_clock_of_the_one_before_are_whole(
    make_video: MakeVideo, tmp_path: Path, jitter_ms: int
) -> None:
    """FFmpeg says of the last packets of each that something is missing, since their numbers do not go on."""
    parts = []
    for first in (0, 30, 60):
        pts_ms = [100 * number + jitter_ms * (number % 3) for number in range(first, first + 30)]
        source = SourceVideo(name="part.ts", pts_ms=pts_ms)
        parts.append(make_video(ramp(30, 20 + 2 * first), source).read_bytes())
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    with open_film(tmp_path / "joined.ts") as film:
        assert any(packet.is_corrupt for packet in film.container.demux(film.stream))
    info, seconds_F, level_F = seen(tmp_path / "joined.ts", TranscodeConfig(damaged="refuse"))
    np.testing.assert_array_equal(seconds_F, np.arange(18) / 2)
    assert np.diff(level_F).min() > 6
    assert (info.num_damaged, info.remarks) == (0, "")


@pytest.mark.parametrize("ending", ["ts", "mkv", "mp4"])
def test_a_clock_that_jumps_makes_no_half_hour_of_one_picture(make_video: MakeVideo, ending: str) -> None:
    pts_ms = [100 * index + (1_800_000 if index >= 30 else 0) for index in range(60)]
    source = make_video(ramp(60), SourceVideo(name=f"jump.{ending}", pts_ms=pts_ms))
    info, seconds_F, level_F = seen(source)
    np.testing.assert_array_equal(seconds_F, np.arange(12) / 2)
    assert np.diff(level_F).min() > 6
    assert "jumps by 1800.0 s: laid end to end" in info.remarks
    assert info.num_missing == 0


def test_a_gap_is_filled_up_to_the_bound_and_said(make_video: MakeVideo) -> None:
    pts_ms = [100 * index + (8_000 if index >= 10 else 0) for index in range(20)]
    source = make_video(ramp(20), SourceVideo(name="gap.ts", pts_ms=pts_ms))
    info, seconds_F, level_F = seen(source)
    assert len(seconds_F) == 20
    assert np.ptp(level_F[2:17]) < 3
    assert info.remarks == "1 gap of 8.0 s in all without a picture, filled with the picture before"
    info, seconds_F, _ = seen(source, TranscodeConfig(max_gap_s=5))
    assert len(seconds_F) == 4
    assert "laid end to end" in info.remarks


@pytest.mark.parametrize("start_ms", [-2000, 0, 7_200_000])
def test_where_the_clock_begins_does_not_matter(make_video: MakeVideo, start_ms: int) -> None:
    pts_ms = [start_ms + 100 * index for index in range(20)]
    info, seconds_F, _ = seen(make_video(ramp(20), SourceVideo(name="early.nut", pts_ms=pts_ms)))
    np.testing.assert_array_equal(seconds_F, np.arange(4) / 2)
    assert info == Mp4Info(4, 64, 2.0, 2.0, True)


@pytest.mark.parametrize("leap_ms", [30_000, 5_000_000])
@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_a_timestamp_that_leaps_alone_is_passed_over_and_said(
    make_video: MakeVideo, tmp_path: Path, ending: str, leap_ms: int
) -> None:
    source = make_video(ramp(60), SourceVideo(name=f"even.{ending}"))
    with av.open(str(source)) as read, av.open(str(tmp_path / f"leap.{ending}"), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(packet for packet in read.demux(video=0) if packet.size):
            if number == 30:
                packet.pts += int(Fraction(leap_ms, 1000) / packet.time_base)
            packet.stream = stream
            out.mux(packet)
    info, seconds_F, level_F = seen(tmp_path / f"leap.{ending}")
    np.testing.assert_array_equal(seconds_F, np.arange(12) / 2)
    assert np.diff(level_F).min() > 6
    assert "one timestamp leaps by" in info.remarks
    assert info.num_missing == 0


def test_a_picture_of_days_is_refused(make_video: MakeVideo, tmp_path: Path) -> None:
    source = make_video(ramp(3), SourceVideo())
    with av.open(str(source)) as read, av.open(str(tmp_path / "days.mp4"), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        packets[-1].duration = int(200_000 / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            out.mux(packet)
    with pytest.raises(VideoError, match=r"^days.mp4: got pictures of 200000 s, expected .*timestamps$"):
        seen(tmp_path / "days.mp4")


# ------------------------------------------------------------------------------------------------------ several streams
def write_streams(path: Path, sound_s: float, *films: tuple[SourceVideo, Sequence[np.ndarray]]) -> None:
    """Write several streams into one file; the H.264 one is marked as the default."""
    with av.open(str(path), "w") as container:
        streams = []
        for source, pictures in films:
            stream = container.add_stream(source.codec, rate=source.rate, options=dict(source.options))
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = source.pix_fmt
            stream.disposition = Disposition.default if source.codec == "libx264" else Disposition(0)
            stream.codec_context.time_base = Fraction(1, 1000)
            streams.append(stream)
        sound = None
        if sound_s:
            sound = container.add_stream("wmav2" if path.suffix == ".wmv" else "aac", rate=44100, layout="mono")
            sound.bit_rate = 64_000
        packets = []
        for stream, (source, pictures) in zip(streams, films, strict=True):
            for index, picture in enumerate(pictures):
                frame = VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts = source.pts_ms[index] if source.pts_ms else index * 1000 // source.rate
                frame.time_base = Fraction(1, 1000)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        if sound is not None:
            for index in range(round(sound_s * 44100 / 1024)):
                quiet = AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                quiet.sample_rate, quiet.pts, quiet.time_base = 44100, 1024 * index, Fraction(1, 44100)
                packets += sound.encode(quiet)
            packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


FILM = (SourceVideo(), ramp(40))
PREVIEW = (SourceVideo(codec="mjpeg", pix_fmt="yuvj420p", rate=1, options={}), [np.zeros((32, 32, 3), np.uint8)])
THUMBNAILS = (SourceVideo(codec="mjpeg", pix_fmt="yuvj420p", options={}), [np.zeros((32, 32, 3), np.uint8)] * 40)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("films", list(itertools.permutations([FILM, PREVIEW, THUMBNAILS])))
def test_the_film_is_found_among_previews(tmp_path: Path, ending: str, films: tuple) -> None:
    write_streams(tmp_path / f"several.{ending}", 0, *films)
    info, _, level_F = seen(tmp_path / f"several.{ending}")
    assert len(level_F) == 8
    assert level_F.min() > 15
    assert info.remarks == f"3 video streams: the one of 64x48 px, stream {films.index(FILM)}, is taken"


def test_a_stream_that_cannot_be_read_is_not_the_film(tmp_path: Path) -> None:
    path = tmp_path / "unknown.mkv"
    write_streams(path, 0, THUMBNAILS, FILM)
    path.write_bytes(path.read_bytes().replace(b"V_MJPEG", b"V_NOONE"))
    info, _, level_F = seen(path)
    assert len(level_F) == 8
    assert level_F.min() > 15
    assert info.remarks == "2 video streams: the one of 64x48 px, stream 1, is taken"


def test_a_stream_that_begins_in_the_middle_ends_nothing() -> None:
    """PyAV raises at its packets, of which it knows no stream."""
    packets = iter([1, 2, None, None, 3])

    class Container:
        def demux(self, *_: object) -> Iterator[int]:
            for packet in packets:
                if packet is None:
                    raise IndexError("list index out of range")
                yield packet

    assert list(demux(Container())) == [1, 2, 3]  # type: ignore[arg-type]


def test_seconds_count_from_the_sound_where_pictures_begin_late(tmp_path: Path) -> None:
    late = replace(FILM[0], pts_ms=[5000 + 100 * index for index in range(40)])
    write_streams(tmp_path / "late.mp4", 9.0, (late, FILM[1]))
    info, seconds_F, level_F = seen(tmp_path / "late.mp4")
    np.testing.assert_array_equal(seconds_F, 5 + np.arange(8) / 2)
    assert (info.num_frames, info.duration_s, info.start_s) == (8, 4.0, 5.0)
    part = decode_all(tmp_path / "out.mp4", start=3, count=2)
    np.testing.assert_array_equal(part.seconds_F, [6.5, 7.0])
    np.testing.assert_allclose(part.rgb_FHWC.mean(axis=(1, 2, 3)), level_F[3:5])


# ------------------------------------------------------------------------------------------ what the container declares
@pytest.mark.parametrize(("ending", "codec"), [("wmv", "wmv2"), ("mkv", "libx264")])
def test_pictures_that_end_before_the_sound_are_whole(tmp_path: Path, ending: str, codec: str) -> None:
    source = FILM[0] if codec == "libx264" else SourceVideo(codec=codec, options={})
    write_streams(tmp_path / f"long.{ending}", 12.0, (source, FILM[1]))
    info, _, _ = seen(tmp_path / f"long.{ending}")
    assert info == Mp4Info(8, 64, 2.0, 4.0, True)


def test_a_file_cut_in_half_is_not(tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    write_streams(path, 4.0, FILM)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"^cut.*: got 0 damaged and \d+ missing of \d+ pictures; it seems cut short"):
        seen(path)


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_that_leaves_out_pictures_is_whole(make_video: MakeVideo, codec: str) -> None:
    """Its header counts them, and FFmpeg gives none."""
    pts_ms = [100 * index for index in range(50) if index % 7 not in {3, 4} and index < 46]
    pictures = ramp(len(pts_ms))
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = SourceVideo(name="dropped.avi", codec=codec, pix_fmt=pix_fmt, options={}, pts_ms=pts_ms)
    info, seconds_F, _ = seen(make_video(pictures, source))
    assert (info.num_damaged, info.num_missing, len(seconds_F)) == (0, 0, 9)


@pytest.mark.parametrize(("share", "is_used"), [(0.6, False), (0.99, True)])
def test_an_avi_that_was_cut_off_says_how_many_pictures_there_were(
    make_video: MakeVideo, share: float, *, is_used: bool
) -> None:
    path = make_video(ramp(100), SourceVideo(name="cut.avi", codec="mpeg4", options={"g": "1"}))
    with av.open(str(path)) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: packets[round(100 * share)]])
    if is_used:
        assert seen(path)[0].num_missing == 1
        return
    with pytest.raises(VideoError, match=r"^cut.avi: got \d damaged.* and \d+ missing of 100 pictures; it seems cut"):
        seen(path)


@pytest.mark.parametrize(
    ("tag", "total_s", "expected_s"),
    [
        ("00:00:30.040000000", 30.1, 30.04),
        ("01:00:30.5", 3700.0, 3630.5),
        ("00:00:30.040000000", 12.0, None),  # of before it was shortened
        ("half an hour", 1800.0, None),
        (None, 30.0, None),
    ],
)
def test_a_tag_says_how_long_a_stream_of_matroska_lasts(
    tag: str | None, total_s: float, expected_s: float | None
) -> None:
    stream = SimpleNamespace(index=0, duration=None, time_base=None, metadata={"DURATION": tag} if tag else {})
    film = Film(SimpleNamespace(duration=round(total_s * av.time_base), streams=[stream]), stream, 1)
    assert _own_duration(film) == expected_s


# ------------------------------------------------------------------------------------------------------------ side data
def exif(orientation: int) -> bytes:
    """Return a JPEG segment of a camera's name and how it was held."""
    entries = struct.pack(">HHI4s", 0x010F, 2, 4, b"cam\0") + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def test_side_data_without_a_name_is_no_error_and_the_picture_is_turned(tmp_path: Path) -> None:
    """PyAV has no name for Exif, among others."""
    picture = np.full((64, 96, 3), 40, np.uint8)
    picture[:, :48] = 200
    source = tmp_path / "camera.avi"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        for packet in [*stream.encode(VideoFrame.from_ndarray(picture, "rgb24")), *stream.encode(None)]:
            held = av.Packet(bytes(packet)[:2] + exif(6) + bytes(packet)[2:])
            held.pts, held.dts, held.time_base, held.is_keyframe = packet.pts, packet.dts, packet.time_base, True
            held.stream = stream
            container.mux(held)
    with open_film(source) as film:
        frame = next(film.container.decode(film.stream))
        with pytest.raises(ValueError, match="is not a valid Type"):
            attached(frame)
        assert display_matrix(frame) is not None
    assert seen(source)[0] == Mp4Info(1, 64, 2.0, 0.5, True)
    shown = decode_all(tmp_path / "out.mp4").rgb_FHWC[0].mean(axis=-1)
    assert shown[:24].min() > 150
    assert shown[40:].max() < 90


def test_a_name_of_two_lines_makes_one(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"^two lines.mp4: got a file that FFmpeg cannot read"):
        seen(tmp_path / "two\nlines.mp4")


def test_an_error_of_the_library_is_never_the_whole_message(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise ValueError("29 is not a valid Type")

    monkeypatch.setattr("dejavu.video.sample.display_matrix", refuse)
    with pytest.raises(VideoError, match=r"^source.mp4: got .*29 is not a valid Type.*, expected .*; .*leave it out$"):
        seen(make_video(ramp(3), SourceVideo()))


# ------------------------------------------------------------------------------------------------------- given examples
@pytest.mark.parametrize(
    ("name", "expected_s"),
    [
        *(("joined.ts", (0, 20)), ("joined.vob", (0, 20)), ("jump-30min.ts", (0, 20)), ("skydio.mp4", (0, 10))),
        *(("late.mp4", (5, 10)), ("freeze-at-end.ogv", (0, 6)), ("a.wmv", (0, 5)), ("spatial_mvhevc.mov", (0, 0.5))),
    ],
)
def test_odd_files_as_real_ones_are(
    shared_dir: Path, tmp_path: Path, name: str, expected_s: tuple[float, float]
) -> None:
    source = shared_dir / "data" / "odd" / name
    info = transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert (info.start_s, info.duration_s) == expected_s
    assert (info.num_damaged, info.num_missing) == (0, 0)
    brightest = decode_all(tmp_path / "out.mp4").rgb_FHWC.mean(axis=(1, 2, 3))
    if name.startswith("joined"):
        assert brightest[20:].min() > brightest[:20].max()
