"""The comparison from files to embeddings runs whole; what it finds is for a machine with nothing else to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dejavu.observability.looking import looking
from dejavu.video.plain import write_moving_texture

ROOT = Path(__file__).resolve().parents[3]
BENCHMARK = ROOT / "jobs" / "benchmarks" / "end_to_end.py"


@pytest.mark.ray
def test_a_loop_and_the_job_embed_the_same_frames(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, num_frames in (("a.mp4", 9), ("b.mp4", 20)):
        write_moving_texture(videos / name, num_frames, 160)
    out = tmp_path / "rows.json"
    command = [sys.executable, str(BENCHMARK), "--videos", str(videos), "--backbone", "embedded", "--json", str(out)]
    command += ["--repeat", "2", "--decoders", "pyav", "torchcodec", "--settings", "reusevit forced_rate=0.8"]
    command += ["--plot", str(tmp_path / "speed.png")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    rows = {row["way"]: row for row in record["rows"]}
    assert ("loop, torchcodec" in rows) != ("torchcodec is left out" in done.stdout)
    loop, ours = rows["loop, pyav"], rows["reusevit forced_rate=0.8"]
    assert loop["frames"] == 9 + 20
    assert ours["frames"] == 2 * loop["frames"]
    assert loop["engine_share"] is None
    assert 0 < ours["engine_share"] < 1
    assert {"driver", "cluster", "read"} <= ours["cpu_s"].keys()
    for row in rows.values():
        assert row["speed"] == pytest.approx(row["video_s"] / row["seconds"])
        assert row["peak_mb"] > 100
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_copied_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    import end_to_end

    (tmp_path / "notes.txt").write_text("not a video")
    monkeypatch.setattr(end_to_end, "_weights", lambda backbone, _: backbone)
    assert end_to_end.main(["--videos", str(tmp_path), "--repeat", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--repeat: got {tmp_path / 'notes.txt'} (")
    assert line.endswith("expected videos that Matroska can hold; leave it out")


def test_cpu_time_is_told_by_what_a_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    import end_to_end

    code = "import time; begin = time.process_time()\nwhile time.process_time() - begin < 0.5: pass\ntime.sleep(60)"
    child = subprocess.Popen(["ray::ReadVideos", "-c", code], executable=sys.executable)
    try:
        times = end_to_end.CpuTimes({"driver": child.pid})
        with looking(times.look, end_to_end.PERIOD_S):
            time.sleep(2.5)
    finally:
        child.kill()
        child.wait()
    parts = times.by_part()
    assert parts.keys() == {"read"}
    assert parts["read"] > 0.4
    assert times.peak > 2**20
