"""Videos to embeddings: once, again, with more videos, and as other programs read them."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import embed
import numpy as np
import pyarrow.parquet as pq
import pytest

from dejavu.records import ParetoPoint
from dejavu.report.pareto_csv import write_pareto_csv
from dejavu.video.write import write_video

ROOT = Path(__file__).resolve().parents[2]


def moving(num_frames: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (96, 128 + num_frames, 3), np.uint8)
    return [noise[:, index : index + 128] for index in range(num_frames)]


def point(method: str, setting: str, agreement: float, speedup: float) -> ParetoPoint:
    return ParetoPoint(
        method=method, setting=setting, split="test", num_clips=3, flops_reduction=2.0, speedup=speedup,
        agreement=agreement,
    )  # fmt: skip


def run(*arguments: object, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """As a person does, in a process that has imported nothing."""
    command = [sys.executable, ROOT / "jobs" / "embed.py", *arguments]
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=900, check=False)


def test_what_a_report_leads_with_is_taken(tmp_path: Path) -> None:
    points = [
        point("original", "dense", 1.0, 1.0),
        point("frame_skip", "every=2", 0.97, 1.9),
        point("frame_skip", "every=4", 0.80, 3.5),
        point("tome", "r=8", 0.99, 1.2),
    ]
    write_pareto_csv(tmp_path / "pareto.csv", points)
    (tmp_path / "config.yaml").write_text("allowed_loss: 0.05\n")
    assert embed.fastest(tmp_path, None) == ("frame_skip every=2", "")
    assert embed.fastest(tmp_path, 0.02) == ("tome r=8", "")
    assert embed.fastest(tmp_path, 0.3) == ("frame_skip every=4", "")
    words, remark = embed.fastest(tmp_path, 0.001)
    assert words == "original"
    assert "no other setting of that run was timed and stays within 0.1 %" in remark
    assert "tome r=8 is 1.20 times as fast and keeps 99.0 % (--allowed-loss)" in remark


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--setting", "frame_skip factor=2"], "frame_skip: got unknown factor, expected every"),
        (["--like", "nowhere"], r"--store: got .*nowhere without store/embeddings"),
        (["--fps", "500"], "fps: got 500"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"not looked into")
    code = embed.main(["--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), *words])
    said = capsys.readouterr().err
    assert code == 1
    assert re.match(f"error: {line}", said)
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "embeddings.parquet").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_videos_are_embedded_once_and_read_by_other_programs(
    ray_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First on a cluster that the job starts itself, then on one that is there."""
    videos, out = tmp_path / "videos", tmp_path / "OUT"
    (videos / "deep er").mkdir(parents=True)
    write_video(videos / "a.mp4", iter(moving(60, 0)), 10, 20)
    write_video(videos / "deep er" / "b.mp4", iter(moving(35, 1)), 10, 20)
    (videos / "broken.mp4").write_text("no video")
    words = ("--videos", videos, "--out", out, "--setting", "frame_skip every=2")
    first = run(*words)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "embedded 2 of 3 videos" in first.stdout
    table = pq.read_table(out / "embeddings.parquet")
    assert table.column_names == ["video", "seconds", "embedding"]
    assert sorted(set(table["video"].to_pylist())) == ["a.mp4", "deep er/b.mp4"]
    assert table["seconds"].to_pylist()[:3] == [0.0, 0.5, 1.0]
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == ["broken.mp4"]
    assert not [*out.rglob("*.mp4")]

    (videos / "broken.mp4").unlink()
    write_video(videos / "c.mp4", iter(moving(20, 2)), 10, 20)
    again = run(*words, env=ray_environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "embedded 1 of 3 videos" in again.stdout
    more = pq.read_table(out / "embeddings.parquet")
    assert more.filter([video != "c.mp4" for video in more["video"].to_pylist()]).equals(table)

    other = run("--videos", videos, "--out", out)
    assert other.returncode == 1
    assert re.search(r"--out: got .* with embeddings of 'frame_skip every=2'.*; give another folder", other.stderr)

    found = run_documented(out, tmp_path, monkeypatch)
    assert found["index"].ntotal == len(more)


def run_documented(out: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the lines of docs/embed.md one after the other where OUT is."""
    assert out.name == "OUT"
    monkeypatch.chdir(home)
    known: dict[str, Any] = {}
    for lines in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "embed.md").read_text(), re.DOTALL):
        exec(lines, known)
    return known
