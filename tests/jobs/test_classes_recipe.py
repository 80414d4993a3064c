"""The recipe of class folders, all stages but training and timing, on drawn videos."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dejavu.video.write import write_video

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
CLASSES = {"red_square": (220, 30, 30), "BlueSquare": (30, 60, 220)}


def square(colour: tuple[int, int, int], seed: int) -> list[np.ndarray]:
    """A square that moves over a grey of its own."""
    rng = np.random.default_rng(seed)
    grey, row, step = rng.integers(90, 160), rng.integers(8, 80), rng.integers(1, 4)
    frames = []
    for index in range(24):
        rgb = np.full((128, 128, 3), grey, np.uint8)
        rgb[row : row + 40, 8 + step * index : 48 + step * index] = colour
        frames.append(rgb)
    return frames


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classes_are_told_from_every_settings_embeddings(pipeline: Pipeline, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 3)):
        for name, colour in CLASSES.items():
            folder = tmp_path / "videos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                write_video(folder / f"{index}.mp4", iter(square(colour, 10 * len(split) + index)), 4, 20)
    done = pipeline(
        "classes", "--videos", tmp_path / "videos", "--results", tmp_path / "out", "--backbone", "embedded",
        "--stages", "transcode,sweep,embed,score", "--sweep.density", "tiny", "--sweep.methods", "frame_skip",
        "--allowed-loss", "0.5",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "splits: 6 train, 4 val, 6 test, by folders" in done.stdout
    assert "fitted a probe of 2 classes on 6 clips" in done.stdout
    original, *others = rows(tmp_path / "out" / "pareto.csv")
    assert others
    for point in (original, *others):
        assert point["num_clips"] == "6"
        for name in ("accuracy", "knn_accuracy", "zero_shot_accuracy"):
            assert 0.5 <= float(point[name]) <= 1  # colours, which the embedded backbone tells apart
            assert float(point[f"{name}_ci_low"]) <= float(point[name]) <= float(point[f"{name}_ci_high"])
            assert float(point[f"{name}_loss_ci_low"]) <= 0 <= float(point[f"{name}_loss_ci_high"])
        assert 0 < float(point["agreement"]) <= 1
        assert point["acc_gqa"] == point["median_rank"] == ""
    assert float(original["accuracy"]) == float(original["agreement"]) == 1
    parts = rows(tmp_path / "out" / "breakdown.csv")
    by_class = {row["value"]: row for row in parts if row["split_by"] == "class" and row["method"] == "original"}
    assert {name: row["num_clips"] for name, row in by_class.items()} == dict.fromkeys(CLASSES, "3")
    assert all(float(row["accuracy"]) == 1 for row in by_class.values())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "top-1 accuracy" in page
    assert 'id="class-table"' in page
    assert "question" not in page.partition('id="configuration"')[0]
