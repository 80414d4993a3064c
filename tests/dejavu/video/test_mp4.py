from __future__ import annotations

import errno
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dejavu.video.decode import decode_all
from dejavu.video.mp4 import Mp4Info, TranscodeConfig, VideoError, probe, transcode

CONFIG = TranscodeConfig()


def grey(level: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def ramp(num_frames: int) -> list[np.ndarray]:
    """Flat pictures, each a little brighter: frame i has level 20 + 2 i."""
    return [grey(20 + 2 * index) for index in range(num_frames)]


def levels(path: Path) -> np.ndarray:
    """The brightness of each frame."""
    return decode_all(path).rgb_FHWC.mean(axis=(1, 2, 3))


def shown(target: Path) -> np.ndarray:
    """The first frame."""
    return decode_all(target, count=1).rgb_FHWC[0].astype(int)


@pytest.mark.parametrize("clip", ["bikes", "carphone_pristine", "world"])
def test_a_real_clip_comes_out_as_the_golden_one(shared_dir: Path, tmp_path: Path, clip: str) -> None:
    source = shared_dir / "data" / "videos" / f"{clip}.mp4"
    golden = decode_all(shared_dir / "golden" / "codec" / f"{clip}_2fps_224.mp4")
    info = transcode(source, tmp_path / "out.mp4", frame_px=224, config=CONFIG)
    num_frames = len(golden.seconds_F)
    ours = decode_all(tmp_path / "out.mp4", count=num_frames)
    with av.open(str(source)) as container:
        duration_s = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    assert info.num_frames == round(2 * duration_s)
    assert info == Mp4Info(info.num_frames, 224, 2.0, info.num_frames / 2, True)
    assert ours.picture_types[:-1] == golden.picture_types[:-1]
    np.testing.assert_array_equal(ours.seconds_F, golden.seconds_F)
    error_F = ((ours.rgb_FHWC.astype(float) - golden.rgb_FHWC) ** 2).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error_F) > 37).all()  # the golden ones were made with another x264 and cut at 6 s


def test_the_encoder_got_the_published_settings(clip_64: Path, tmp_path: Path) -> None:
    transcode(clip_64, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    written = (tmp_path / "out.mp4").read_bytes()
    options = written[written.index(b"options: ") :].split(b"\0")[0].decode("ascii", "replace").split()
    expected = "ref=2 me=dia subme=0 bframes=3 b_adapt=0 keyint=250 scenecut=0 crf=22.0 rc_lookahead=50 trellis=2"
    assert set(expected.split()) <= set(options)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_the_same_source_gives_the_same_bytes(clip_64: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        transcode(clip_64, tmp_path / name, frame_px=64, config=CONFIG)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_frames_are_sampled_by_time_as_ffmpeg_s_fps_filter_does(make_video, source_video, tmp_path: Path) -> None:
    source = make_video(ramp(40), source_video(rate=10))
    info = transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    graph_levels = []
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("fps", "2"), graph.add("buffersink")).configure()
        for frame in [*container.decode(stream), None]:
            graph.vpush(frame)
            while True:
                try:
                    graph_levels.append(graph.vpull().to_ndarray(format="rgb24").mean())
                except (BlockingIOError, av.EOFError):
                    break
    assert info.num_frames == 8
    np.testing.assert_allclose(levels(tmp_path / "out.mp4"), graph_levels[:8], atol=1.5)


def test_variable_frame_rate_is_sampled_by_timestamps(make_video, source_video, tmp_path: Path) -> None:
    pts_ms = [0, 100, 150, 1400, 1450, 3000]
    source = make_video([grey(30 * index + 20) for index in range(6)], source_video(name="v.mkv", pts_ms=pts_ms))
    transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    seen = levels(tmp_path / "out.mp4")
    expected = [2, 2, 2, 4, 4, 4]  # what was on screen just before 0.25, 0.75, 1.25, ... s
    np.testing.assert_allclose(seen[:6], [30 * index + 20 for index in expected], atol=3)
    np.testing.assert_array_equal(decode_all(tmp_path / "out.mp4").seconds_F, np.arange(len(seen)) / 2)


def test_a_late_start_is_not_filled_with_frames(make_video, source_video, tmp_path: Path) -> None:
    pts_ms = [7200_000 + 100 * index for index in range(20)]
    source = make_video(ramp(20), source_video(name="late.mkv", pts_ms=pts_ms))
    with av.open(str(source)) as container:
        assert container.start_time > 7000 * 1e6
    info = transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert (info.num_frames, info.duration_s) == (4, 2.0)


def test_one_frame_is_a_video(make_video, source_video, tmp_path: Path) -> None:
    info = transcode(make_video([grey(90)], source_video()), tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert info == Mp4Info(1, 64, 2.0, 0.5, True)
    assert levels(tmp_path / "out.mp4") == pytest.approx([90], abs=2)


QUADRANTS = ((200, 40), (40, 120))
"""Brightness at the top left, top right, bottom left, bottom right."""


def quadrants(width: int, height: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    for row in (0, 1):
        for col in (0, 1):
            top, left = row * height // 2, col * width // 2
            picture[top : top + height // 2, left : left + width // 2] = QUADRANTS[row][col]
    picture[0 : height // 2, width // 2 :] = (40, 160, 40)
    return picture


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_video_is_set_upright(make_video, source_video, tmp_path: Path, degrees: int, mirrored: bool) -> None:
    picture = quadrants(96, 64)
    source = make_video([picture] * 3, source_video(degrees=degrees, mirrored=mirrored))
    transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    expected = np.rot90(picture[:, 16:80], degrees // 90)
    if mirrored:
        expected = expected[:, ::-1]
    centre = (slice(None, None, 32), slice(None, None, 32))
    got = shown(tmp_path / "out.mp4")[12:, 12:][centre]
    np.testing.assert_allclose(got, expected[12:, 12:][centre], atol=12)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize(("width", "height"), [(65, 47), (33, 200), (17, 17), (2, 2), (1, 3)])
def test_odd_sizes_become_squares(make_video, source_video, tmp_path: Path, width: int, height: int) -> None:
    source = make_video(
        [grey(90, width, height)] * 5, source_video(name="odd.mov", codec="png", pix_fmt="rgb24", options={})
    )
    assert transcode(source, tmp_path / "out.mp4", frame_px=48, config=CONFIG).frame_px == 48
    assert levels(tmp_path / "out.mp4") == pytest.approx([90], abs=2)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "container"),
    [
        ("libx264", "yuv420p10le", "mp4"),
        ("libx264", "yuv444p", "mp4"),
        ("ffv1", "yuv422p10le", "mkv"),
        ("ffv1", "yuva420p", "mkv"),
        ("ffv1", "bgra", "mkv"),
        ("mjpeg", "yuvj420p", "avi"),
        ("mpeg4", "yuv420p", "avi"),
        ("libvpx-vp9", "yuv420p", "webm"),
        ("png", "rgb24", "mov"),
    ],
)
def test_other_codecs_and_pixel_formats_keep_their_colours(
    make_video, source_video, codec: str, pix_fmt: str, container: str
) -> None:
    picture = grey(0)
    picture[:] = (200, 120, 60)
    source = make_video(
        [picture] * 10, source_video(name=f"source.{container}", codec=codec, pix_fmt=pix_fmt, options={})
    )
    target = source.with_name("out.mp4")
    assert transcode(source, target, frame_px=64, config=CONFIG).num_frames == 2
    np.testing.assert_allclose(decode_all(target).rgb_FHWC.mean(axis=(1, 2)), [(200, 120, 60)] * 2, atol=4)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
@pytest.mark.parametrize("limits", ["tv", "pc"])
def test_the_stream_s_colour_matrix_and_range_are_honoured(
    make_video, source_video, tmp_path: Path, matrix: str, limits: str
) -> None:
    picture = grey(0)
    picture[:] = (200, 120, 60)
    options = {"colorspace": matrix, "color_range": limits, "crf": "4"}
    source = make_video([picture] * 3, source_video(options=options))
    with av.open(str(source)) as container:
        direct = next(container.decode(video=0)).to_ndarray(format="rgb24").mean(axis=(0, 1))
    transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    np.testing.assert_allclose(shown(tmp_path / "out.mp4").mean(axis=(0, 1)), direct, atol=4)


def test_the_centre_square_is_kept(make_video, source_video, tmp_path: Path) -> None:
    picture = grey(20, 128, 64)
    picture[:, 32:96] = 180
    transcode(make_video([picture] * 3, source_video()), tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert shown(tmp_path / "out.mp4")[:, 4:-4].min() > 170


def test_names_may_hold_anything(clip_64: Path, tmp_path: Path) -> None:
    odd = clip_64.rename(tmp_path / 'Déjà vu: l\'été "50%d" #1 ?.mp4')
    target = tmp_path / "sortie é '%03d' \"x\".mp4"
    assert transcode(odd, target, frame_px=64, config=CONFIG).num_frames == 20
    assert probe(target).num_frames == 20


def text(path: Path) -> None:
    path.write_text("this is no video\n" * 100)


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [lambda path: None, Path.touch, text, playlist, folder])
def test_what_is_no_video_is_one_clear_line(tmp_path: Path, spoil: Any) -> None:
    spoil(tmp_path / "bad.mp4")
    with pytest.raises(VideoError, match=r"^bad.mp4: got .*, expected .*; .*") as caught:
        transcode(tmp_path / "bad.mp4", tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.mp4"}


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    source = tmp_path / "sound.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        quiet = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        quiet.sample_rate = 44100
        container.mux(stream.encode(quiet))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"no video stream"):
        transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("index_first", [False, True])
def test_a_truncated_file_is_told(make_video, source_video, tmp_path: Path, kept: float, index_first: bool) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(60)]
    options = {"crf": "10", "preset": "ultrafast"}
    source = make_video(pictures, source_video(options=options))
    if index_first:
        with (
            av.open(str(source)) as read,
            av.open(str(tmp_path / "f.mp4"), "w", options={"movflags": "faststart"}) as out,
        ):
            stream = out.add_stream_from_template(read.streams.video[0])
            for packet in read.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        source = tmp_path / "f.mp4"
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(VideoError, match=source.name):
        transcode(source, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert not (tmp_path / "out.mp4").exists()


class FullDisk:
    """A file that takes `left` bytes and then no more."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("left", [0, 20, 2000])
def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(
    clip_64: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    target = tmp_path / "store" / "out.mp4"
    target.parent.mkdir()
    target.write_bytes(b"older")
    plain_open = Path.open

    def open_nearly_full(path: Path, mode: str = "r") -> Any:
        file = plain_open(path, mode)
        return FullDisk(file, left) if path.parent == target.parent and "x" in mode else file

    monkeypatch.setattr(Path, "open", open_nearly_full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        transcode(clip_64, target, frame_px=64, config=CONFIG)
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, ValueError)
    assert [path.name for path in target.parent.iterdir()] == ["out.mp4"]
    assert target.read_bytes() == b"older"


def test_a_target_that_cannot_be_written_is_an_os_error(clip_64: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        transcode(clip_64, tmp_path / "file" / "out.mp4", frame_px=64, config=CONFIG)


def test_what_is_written_is_readable_by_others(clip_64: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    transcode(clip_64, tmp_path / "out.mp4", frame_px=64, config=CONFIG)
    assert (tmp_path / "out.mp4").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_probe_refuses_what_was_not_transcoded(clip_64: Path) -> None:
    with pytest.raises(VideoError, match="64x48"):
        probe(clip_64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("fps", 0), ("fps", float("nan")), ("crf", 52), ("preset", "slowest"), ("key_frame_interval", 0)),
        *(("max_gap_s", 0), ("max_gap_s", float("inf")), ("damaged", "keep"), ("max_damaged_share", 1.5)),
    ],
)
def test_a_config_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: got .*, expected .*; "):
        TranscodeConfig(**{field: value})


@pytest.mark.parametrize(("view", "is_bordered"), [(1.0, True), (0.875, False), (0.5, False)])
def test_a_view_keeps_the_middle_of_the_centre_square(
    make_video, source_video, tmp_path: Path, view: float, is_bordered: bool
) -> None:
    """A bright square of 7/8 of the height, a dark dot in its middle."""
    picture = grey(20, 256, 192)
    picture[12:180, 44:212] = 230
    picture[84:108, 116:140] = 20
    source = make_video([picture] * 4, source_video())
    transcode(source, tmp_path / "out.mp4", frame_px=128, config=CONFIG, view=view)
    seen = shown(tmp_path / "out.mp4").mean(axis=-1)
    assert (seen[2] < 60).all() == is_bordered
    assert (seen[1] > 180).all() == (not is_bordered)
    dot_px = 24 / (192 * view) * 128
    assert (seen < 125).sum() - is_bordered * (128**2 - 112**2) == pytest.approx(dot_px**2, rel=0.15)
    assert seen[62:66, 62:66].max() < 60


@pytest.mark.parametrize("view", [0.0, -1.0, 1.01, float("nan")])
def test_a_view_is_a_share(clip_64: Path, tmp_path: Path, view: float) -> None:
    with pytest.raises(ValueError, match="view: got"):
        transcode(clip_64, tmp_path / "out.mp4", frame_px=64, config=CONFIG, view=view)


def test_frame_px_is_whole_macroblocks(clip_64: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame_px: got 100"):
        transcode(clip_64, tmp_path / "out.mp4", frame_px=100, config=CONFIG)


def test_a_broken_rate_keeps_its_time(clip_64: Path, tmp_path: Path) -> None:
    config = TranscodeConfig(fps=30000 / 1001 / 10)
    assert config.rate == Fraction(3000, 1001)
    info = transcode(clip_64, tmp_path / "out.mp4", frame_px=64, config=config)
    assert info.num_frames == 30
    assert info.duration_s == pytest.approx(30 * 1001 / 3000, abs=1e-3)
