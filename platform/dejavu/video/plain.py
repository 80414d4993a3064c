"""What benchmarks and tests measure against: a made video, copies of one, and PyAV's plain decode to RGB."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dejavu.video.mp4 import TranscodeConfig, transcode


def decode_plain(path: Path) -> Iterator[NDArray[np.generic]]:
    """Yield RGB frames [H, W, 3], one decoding thread, nothing else."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24", threads=1)


def copy_remarked(source: Path, target: Path, remark: str) -> None:
    """Write the first video stream of a file as it is, with a remark: the same pictures in another content."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        written.metadata["comment"] = remark
        stream = read.streams.video[0]
        copied = written.add_stream_from_template(stream, opaque=True)
        for packet in read.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                written.mux(packet)


def write_moving_texture(path: Path, num_frames: int, frame_px: int) -> None:
    """Write a transcoded mp4 of a smooth texture that slides, under noise and a square that crosses it; seeded."""
    rng = np.random.default_rng(0)
    side = 2 * frame_px
    coarse = rng.integers(0, 256, (side // 32, side // 32, 3), np.uint8)
    texture = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    source = path.with_suffix(".source.mp4")
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(2), options={"preset": "ultrafast", "crf": "12"})
        stream.width = stream.height = frame_px
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            left, top = (3 * index) % frame_px, index % frame_px
            picture = texture[top : top + frame_px, left : left + frame_px].astype(np.int16)
            square = (7 * index) % (frame_px - 32)
            picture[square : square + 32, -square - 32 : frame_px - square] = (255, 64, 0)
            picture += rng.normal(0, 4, picture.shape).astype(np.int16)
            container.mux(stream.encode(VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    transcode(source, path, frame_px=frame_px, config=TranscodeConfig())
    source.unlink()
