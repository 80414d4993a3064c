"""Little source videos, made with PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceVideo:
    """What a test video is made of."""

    name: str = "source.mp4"
    codec: str = "libx264"
    """Not libx265: the one in PyAV 18.1's wheel aborts the process now and then."""
    pix_fmt: str = "yuv420p"
    rate: int = 10
    options: dict[str, str] = field(default_factory=lambda: {"crf": "10", "preset": "ultrafast"})
    pts_ms: Sequence[int] | None = None
    """Timestamps; None for a constant rate."""
    sound: bool = False
    degrees: int = 0
    """Turn that the display matrix asks for, counter-clockwise."""
    mirrored: bool = False


@pytest.fixture(scope="session")
def source_video() -> type[SourceVideo]:
    """The settings of a test video, to be filled in."""
    return SourceVideo


MakeVideo = Callable[[Sequence[NDArray[np.uint8]], SourceVideo], Path]


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    def make(pictures: Sequence[NDArray[np.uint8]], source: SourceVideo) -> Path:
        path = tmp_path / source.name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(source.codec, rate=source.rate, options=dict(source.options))
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = source.pix_fmt
            if source.degrees or source.mirrored:
                stream.set_display_rotation(source.degrees, hflip=source.mirrored)
            if source.pts_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            sound = container.add_stream("aac", rate=44100) if source.sound else None
            for index, picture in enumerate(pictures):
                frame = VideoFrame.from_ndarray(picture, "rgb24")
                if source.pts_ms is not None:
                    frame.pts, frame.time_base = source.pts_ms[index], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                quiet.sample_rate = 44100
                for _ in range(8):
                    container.mux(sound.encode(quiet))
                container.mux(sound.encode(None))
        return path

    return make


@pytest.fixture
def clip_64(make_video: MakeVideo) -> Path:
    """Ten seconds of a bright square that moves over a dark ramp, 64x48, 10 frames per second."""
    pictures = []
    for index in range(100):
        picture = np.tile(np.linspace(20, 120, 64).astype(np.uint8)[None, :, None], (48, 1, 3))
        left = (index // 2) % 40
        picture[16:32, left : left + 16] = (240, 200, 40)
        pictures.append(picture)
    return make_video(pictures, SourceVideo())
