"""Encode drawn frames as a real H.264 file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from numpy.typing import NDArray

from dejavu.storage.store import atomic
from dejavu.storage.store_path import StorePath


def write_video(path: StorePath, frames: Iterator[NDArray[np.uint8]], fps: int, crf: int) -> int:
    """Write an MP4 that is either absent or whole, and its folder; return the number of frames.

    Frames are RGB [H, W, 3] of even sides, all of one size, taken one at a time. Of `crf`, H.264's quality, 18 is
    visually lossless, and higher is smaller.

    Raises:
        ValueError: There is no frame, or a side is odd.
        OSError: The file cannot be written.
    """
    first = next(frames, None)
    if first is None:
        raise ValueError(f"frames of {path.name}: got none, expected at least one; draw something")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames of {path.name}: got {width}x{height} px, expected even sides; choose another size")
    num_frames = 0
    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # The same frames give the same bytes: one thread, and no assembly whose rounding depends on where rows lie.
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for rgb in chain([first], frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = num_frames, Fraction(1, fps)
            container.mux(stream.encode(frame))
            num_frames += 1
        container.mux(stream.encode(None))
    return num_frames
