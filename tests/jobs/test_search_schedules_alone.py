"""The schedule search on a folder of videos, without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import search_schedules

from dejavu.backbones.load import load_backbone
from dejavu.video.plain import write_moving_texture
from reuse_models.baselines.diffrate.schedule import read_schedule

QUICK = (
    "--schedules.num-frames",
    "16",
    "--schedules.search.frames-per-step",
    "8",
    "--schedules.search.steps",
    "1",
    "--schedules.shares",
    "0.6",
)


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["search_schedules.py", *map(str, words)])
    return search_schedules.main()


def test_a_folder_gives_a_schedule_that_reads_back_and_a_broken_video_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b"):
        write_moving_texture(videos / f"{name}.mp4", 24, 128)
    (videos / "c.mp4").write_bytes(b"no video")
    assert run(monkeypatch, "--videos", videos, "--out", tmp_path / "out", *QUICK) == 0
    printed = capsys.readouterr().out
    assert "left out: c.mp4" in printed
    assert "16 frames of 2 videos" in printed
    schedule = read_schedule(tmp_path / "out" / "0.6.json", load_backbone().vit.shape)
    assert 0.588 <= schedule.achieved_share <= 0.6


def test_no_videos_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--videos", tmp_path, "--out", tmp_path / "out", *QUICK) == 1
    assert capsys.readouterr().err.startswith("error: videos: got no video in")
