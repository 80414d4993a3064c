from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dejavu.report.motion import motion_px
from dejavu.video.mp4 import TranscodeConfig, transcode
from dejavu.video.write import write_video

SIDE, NUM_FRAMES = 128, 12


def pan(step_px: int) -> Iterator[NDArray[np.uint8]]:
    """A window that slides over a picture of soft blots."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (SIDE // 8, (SIDE + NUM_FRAMES * 8) // 8, 3)).astype(np.float64)
    picture = np.kron(coarse, np.ones((8, 8, 1)))
    for axis in (0, 1):
        for shift in (1, 2, 4):
            picture = (picture + np.roll(picture, shift, axis=axis)) / 2
    for number in range(NUM_FRAMES):
        yield picture[:, number * step_px : number * step_px + SIDE].astype(np.uint8)


def moved(folder: Path, step_px: int) -> float:
    write_video(folder / f"{step_px}.mp4", pan(step_px), 2, 10)
    transcode(folder / f"{step_px}.mp4", folder / "t.mp4", frame_px=SIDE, config=TranscodeConfig())
    return motion_px(folder / "t.mp4")


def test_a_faster_pan_has_more_motion_and_a_still_one_none(tmp_path: Path) -> None:
    still, slow, fast = (moved(tmp_path, step) for step in (0, 2, 6))
    assert still == pytest.approx(0, abs=0.05)
    assert slow > 1
    assert fast > 2 * slow
