from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

JOB = Path(__file__).resolve().parents[2] / "jobs" / "prepare_data.py"
HEADER = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(JOB), "nextqa", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def write_annotations(folder: Path, clips: dict[str, Iterable[str]]) -> None:
    """Write one question a video, in the formats of the download."""
    folder.mkdir(parents=True)
    for split, ids in clips.items():
        rows = [f"{clip_id},90,32,32,why,a,0,CW,a,b,c,d,e" for clip_id in ids]
        (folder / f"{split}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        spans = {clip_id: {"duration": 10, "location": {"0": [[1, 2]]}} for clip_id in ids}
        (folder / f"gsub_{split}.json").write_text(json.dumps(spans))
        (folder / f"frame2time_{split}.json").write_text(json.dumps({clip_id: [1.0] for clip_id in ids}))
    places = {clip_id: f"01/{clip_id}" for ids in clips.values() for clip_id in ids}
    (folder / "map_vid_vidorID.json").write_text(json.dumps(places))


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "my data"
    write_annotations(root / "annotations", {"val": ["11", "12"], "test": ["21", "22", "23"]})
    (root / "videos" / "01").mkdir(parents=True)
    for clip_id in ("11", "12", "21", "22"):
        (root / "videos" / "01" / f"{clip_id}.mp4").write_bytes(b"video")
    return root


def test_a_download_that_lacks_a_video_is_counted_and_ready(download: Path) -> None:
    done = check("--check", download)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["val", "2", "2", "0", "0", "2", "0"] in rows
    assert ["test", "3", "2", "1", "0", "3", "0"] in rows
    assert "left out for all methods alike: 23" in done.stdout
    assert "about 80 frames at 2 a second" in done.stdout
    command = shlex.split(done.stdout.strip().splitlines()[-1])
    assert command[:3] == ["python", "jobs/pipeline.py", "nextqa"]
    assert command[command.index("--videos") + 1] == str(download / "videos")


def test_a_train_split_is_counted_where_its_csv_is_there(download: Path) -> None:
    assert "train.csv is not there" in check("--check", download).stdout
    (download / "annotations" / "train.csv").write_text(f"{HEADER}\n31,90,32,32,why,a,0,CW,a,b,c,d,e\n")
    done = check("--check", download)
    assert done.returncode == 0
    assert ["train", "1", "0", "1", "0", "1", "1"] in [line.split() for line in done.stdout.splitlines()]


def test_an_empty_video_is_named_and_not_ready(download: Path) -> None:
    (download / "videos" / "01" / "21.mp4").write_bytes(b"")
    done = check("--check", download)
    assert done.returncode == 1
    assert "each a failed clip: 21" in done.stdout
    assert "Not ready: 1 videos have no bytes" in done.stdout


def test_without_test_videos_it_is_not_ready_and_without_validation_videos_it_says_so(download: Path) -> None:
    for clip_id in ("11", "12"):
        (download / "videos" / "01" / f"{clip_id}.mp4").unlink()
    done = check("--check", download)
    assert done.returncode == 0
    assert "No video of val is there" in done.stdout
    for clip_id in ("21", "22"):
        (download / "videos" / "01" / f"{clip_id}.mp4").unlink()
    done = check("--check", download)
    assert done.returncode == 1
    assert "Not ready: no video of test is there" in done.stdout


def test_a_missing_annotation_file_or_folder_is_one_line(download: Path, tmp_path: Path) -> None:
    (download / "annotations" / "gsub_test.json").unlink()
    done = check("--check", download)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "no file gsub_test.json" in done.stderr
    assert "Traceback" not in done.stderr
    nothing = check("--check", tmp_path / "nowhere")
    assert nothing.returncode == 1
    assert "expected NExT-QA's videos in one of them" in nothing.stderr


def test_folders_elsewhere_can_be_named(download: Path, tmp_path: Path) -> None:
    (download / "annotations").rename(tmp_path / "elsewhere")
    assert check("--check", download).returncode == 1
    assert check("--check", download, "--annotations", tmp_path / "elsewhere").returncode == 0


def test_the_published_annotations_without_videos_are_not_ready(shared_dir: Path, tmp_path: Path) -> None:
    done = check("--check", tmp_path, "--videos", tmp_path, "--annotations", shared_dir / "data" / "nextgqa")
    assert done.returncode == 1
    assert "567" in done.stdout
    assert "990" in done.stdout
    assert "5553" in done.stdout
    assert "train.csv is not there" in done.stdout
