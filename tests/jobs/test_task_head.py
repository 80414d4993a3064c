"""The tiny recipe with a trained head: trained once, found again, and the same from its checkpoint."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
WithWorld = Callable[[Path], Path]
SMALL = ("--stages", "transcode,sweep,embed,score", "--sweep.methods", "frame_skip", "--task.head", "temp_clip")


def scores(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(pipeline: Pipeline, with_world: WithWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run that trained a head."""
    results = with_world(tmp_path_factory.mktemp("head"))
    done = pipeline("tiny", "--results", results, *SMALL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "trained a TempCLIP head, 2 epochs" in done.stdout
    return results


def test_every_question_is_scored_under_three_spans(trained: Path) -> None:
    rows = scores(trained / "task_scores.csv")
    assert {row["span"] for row in rows} == {"gauss", "posthoc", "combined"}
    assert {row["num_questions"] for row in rows} == {"48"}
    assert len({row["acc_qa"] for row in rows if row["method"] == "original"}) == 1  # one answer, three spans


def test_a_head_is_trained_once(pipeline: Pipeline, trained: Path) -> None:
    before = scores(trained / "task_scores.csv")
    again = pipeline("tiny", "--results", trained, *SMALL)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "found a TempCLIP head" in again.stdout
    assert scores(trained / "task_scores.csv") == before


def test_its_checkpoint_scores_the_same(pipeline: Pipeline, trained: Path) -> None:
    before = scores(trained / "task_scores.csv")
    (weights,) = (trained / "store" / "heads").glob("*/temp_clip.safetensors")
    read = pipeline("tiny", "--results", trained, *SMALL, "--task.temp-clip-checkpoint", weights)
    assert read.returncode == 0, read.stderr[-3000:]
    assert "TempCLIP head," not in read.stdout
    assert scores(trained / "task_scores.csv") == before


def test_a_learning_rate_that_is_too_large_ends_with_one_line(
    pipeline: Pipeline, trained: Path, tmp_path: Path
) -> None:
    results = shutil.copytree(trained, tmp_path / "results", symlinks=True)
    done = pipeline("tiny", "--results", results, *SMALL, "--task.fit.learning-rate", "1e20")
    assert done.returncode == 1
    assert "error: temp_clip loss: got" in done.stderr
    assert "lower --task.fit.learning-rate" in done.stderr
    assert "Traceback" not in done.stderr.split("error: temp_clip loss")[1]


def test_a_checkpoint_that_is_none_ends_before_any_work(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"no checkpoint")
    done = pipeline("tiny", "--results", tmp_path / "r", *SMALL, "--task.temp-clip-checkpoint", tmp_path / "head.pth")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: checkpoint head.pth: got a file that cannot be read")
    assert not (tmp_path / "r" / "world").exists()
