from pathlib import Path

import av
import numpy as np
import pytest

from dejavu.video.write import write_video


def test_frames_come_back_at_their_times(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), (level, 128, 255 - level), dtype=np.uint8) for level in range(0, 250, 25)]
    assert write_video(tmp_path / "deep" / "a.mp4", iter(frames), fps=5, crf=10) == 10
    with av.open(str(tmp_path / "deep" / "a.mp4")) as container:
        read = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert [time for time, _ in read] == pytest.approx([index / 5 for index in range(10)])
    for drawn, (_, seen) in zip(frames, read, strict=True):
        assert abs(drawn.astype(int) - seen).mean() < 6


def test_nothing_is_left_of_a_video_that_breaks(tmp_path: Path) -> None:
    def broken():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("the drawing failed")

    with pytest.raises(RuntimeError, match="the drawing failed"):
        write_video(tmp_path / "a.mp4", broken(), fps=5, crf=20)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_and_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frames of a\.mp4: got none"):
        write_video(tmp_path / "a.mp4", iter([]), fps=5, crf=20)
    with pytest.raises(ValueError, match="got 15x16 px, expected even sides"):
        write_video(tmp_path / "a.mp4", iter([np.zeros((16, 15, 3), np.uint8)]), fps=5, crf=20)
