"""Running some of the stages."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dejavu.video.write import write_video

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]


def test_transcoding_alone_is_a_whole_run(pipeline: Pipeline, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    texture = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    write_video(videos / "one.mp4", iter([np.roll(texture, 3 * index, axis=1) for index in range(20)]), 10, 20)
    done = pipeline("folder", "--videos", videos, "--results", tmp_path / "out", "--stages", "transcode")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "transcoded 1 clips, 1 ready, 0 failed" in done.stdout
    assert len(list((tmp_path / "out" / "store" / "mp4").glob("*.mp4"))) == 1
    assert not (tmp_path / "out" / "pareto.csv").exists()
