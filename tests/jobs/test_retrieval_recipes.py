"""The recipes of MSR-VTT and How2QA, all stages but timing, on drawn videos under published names."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dejavu.video.write import write_video

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (240, 220, 40)}
WORDS = (
    "--backbone", "embedded", "--stages", "transcode,sweep,embed,score",
    "--sweep.density", "tiny", "--sweep.methods", "frame_skip",
)  # fmt: skip


def square(colour: tuple[int, int, int]) -> list[np.ndarray]:
    """A square that moves over grey."""
    frames = []
    for index in range(24):
        rgb = np.full((128, 128, 3), 120, np.uint8)
        rgb[40:80, 8 + 3 * index : 48 + 3 * index] = colour
        frames.append(rgb)
    return frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for index, colour in enumerate(COLOURS.values()):
        write_video(folder / f"video{index}.mp4", iter(square(colour)), 4, 20)
    return folder


def points(results: Path) -> list[dict[str, str]]:
    with (results / "pareto.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_msrvtt_writes_recalls(pipeline: Pipeline, videos: Path, tmp_path: Path) -> None:
    texts = [f"a {name} square" for name in COLOURS]
    rows = [f"ret{index},msr{index},video{index},{text}" for index, text in enumerate(texts)]
    rows.append("ret9,msr9,video9,what is not there")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + "\n".join(rows) + "\n")
    done = pipeline("msrvtt", "--videos", videos, "--annotations", tmp_path, "--results", tmp_path / "out", *WORDS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "missing: 1 annotated videos" in done.stdout
    original, *others = points(tmp_path / "out")
    assert len(others) > 0
    for point in (original, *others):
        assert (point["acc_gqa"], point["miop"], point["miou"], point["acc_gqa_ci_low"]) == ("", "", "", "")
        assert 0 <= float(point["accuracy"]) <= float(point["recall_at_5"]) == float(point["recall_at_10"]) == 1
        assert 1 <= float(point["median_rank"]) <= 4
        assert float(point["accuracy_ci_low"]) <= float(point["accuracy"]) <= float(point["accuracy_ci_high"])
    assert float(original["accuracy"]) >= 0.5  # four colours, which the embedded backbone tells apart
    assert float(original["video_to_text_recall_at_5"]) == 1


def test_how2qa_writes_the_share_of_right_answers(pipeline: Pipeline, videos: Path, tmp_path: Path) -> None:
    names = list(COLOURS)
    for split, chosen in (("val", (0, 1)), ("test_public", (2, 3))):
        lines = []
        for index in chosen:
            wrong = [f"a {name} square" for place, name in enumerate(names) if place != index]
            lines.append(",".join([f"video{index}", "[1.0:2.0]", *wrong, "what moves?", f"a {names[index]} square"]))
        (tmp_path / f"how2QA_{split}_release.csv").write_text("\n".join(lines) + "\n")
    done = pipeline("how2qa", "--videos", videos, "--annotations", tmp_path, "--results", tmp_path / "out", *WORDS,
                    "--prompt", "{answer}")  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    chosen_on = json.loads((tmp_path / "out" / "store" / "chosen.json").read_text())
    assert {row["method"] for row in chosen_on} == {"frame_skip"}
    for point in points(tmp_path / "out"):
        assert float(point["accuracy"]) in (0, 0.5, 1)
        assert (point["acc_gqa"], point["median_rank"]) == ("", "")
        assert point["num_clips"] == "2"
