"""The overlay as a person runs it, on a results folder of which it needs the config and the chosen settings alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import overlay
import pytest
from numpy.typing import NDArray

from dejavu.records import ParetoPoint
from dejavu.report.overlay import GAP_PX, STRIP_PX, OverlaySize
from dejavu.report.pareto_csv import write_pareto_csv
from dejavu.video.decode import decode_all
from dejavu.video.write import write_video

CHOSEN = [
    {"method": "frame_skip", "every": 4},
    {"method": "frame_skip", "every": 2},
]
CONFIG = """
backbone: embedded
transcode: {fps: 2.0, crf: 22.0, preset: veryfast, key_frame_interval: 250}
embed: {motion_binning: destination}
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    (folder / "store").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "store" / "chosen.json").write_text(json.dumps(CHOSEN))
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    def frames() -> Iterator[NDArray[np.uint8]]:
        for number in range(20):
            picture = np.full((96, 128, 3), (220, 40, 40), np.uint8)
            picture[:, 4 * number : 4 * number + 16] = (40, 220, 40)
            yield picture

    write_video(tmp_path / "source.mp4", frames(), 4, 18)
    return tmp_path / "source.mp4"


def test_every_other_frame_is_grey(
    results: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    words = [str(video), "--results", str(results), "--setting", "every=2", "--out", str(out)]
    assert overlay.main(words) == 0
    assert "FrameSkip: every=2: 10 frames, 50.0 % of patches reused" in capsys.readouterr().out
    shown = decode_all(out).rgb_FHWC
    size = OverlaySize(128)
    assert shown.shape == (10, size.height_px, size.width_px, 3)
    body = shown[:, STRIP_PX + 8 : STRIP_PX + size.side_px - 8].astype(int)
    colourful = np.ptp(body, axis=-1).mean(axis=1)
    left, right = colourful[:, 8 : size.side_px - 8], colourful[:, size.side_px + GAP_PX + 8 : -8]
    assert (left.mean(axis=1) > 80).all()
    assert (right.mean(axis=1) > 60).tolist() == [number % 2 == 0 for number in range(10)]


def test_unless_named_it_is_the_setting_of_the_headline(results: Path) -> None:
    configs = overlay.reusing_configs(results)
    assert overlay.choose(results, configs, None).setting == "every=4"  # no pareto.csv: the first
    points = [
        ParetoPoint(method=name, setting=setting, split="test", num_clips=3, flops_reduction=gain, acc_gqa=quality)
        for name, setting, gain, quality in (
            ("original", "dense", 1.0, 0.8),
            ("frame_skip", "every=4", 4.0, 0.5),
            ("frame_skip", "every=2", 2.0, 0.79),
        )
    ]
    write_pareto_csv(results / "pareto.csv", points)
    assert overlay.choose(results, configs, None).setting == "every=2"
    assert overlay.choose(results, configs, "frame_skip every=4").setting == "every=4"


def test_weights_are_found_in_a_folder_that_was_moved(results: Path) -> None:
    here = results / "store" / "addons" / "abc" / "target=0.9.safetensors"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"x")
    there = results.parent / "gone" / here.relative_to(results)
    row = {"method": "reusevit", "weights": str(there)}
    assert overlay.at_home(row, results)["weights"] == str(here)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--setting", "every=9"], "--setting: got 'every=9', which names 0, expected one of frame_skip every=4"),
        (["--results", "nowhere"], "--results: got nowhere without config.yaml, expected a results folder"),
    ],
)
def test_a_mistake_is_one_line(
    results: Path, video: Path, tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    assert overlay.main([str(video), "--results", str(results), "--out", str(out), *words]) == 1
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not out.exists()


def test_a_run_without_reuse_is_refused(results: Path) -> None:
    (results / "store" / "chosen.json").write_text(json.dumps([{"method": "original"}]))
    with pytest.raises(ValueError, match="got none that reuses between frames"):
        overlay.reusing_configs(results)
