from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dejavu.report.drift import ages, drift_curve, plot_drift
from reuse_models.reusevit.frame_order import gop_frames


@pytest.mark.parametrize("refresh", [1, 3, 8, None])
def test_a_frame_is_as_old_as_its_segment_says(refresh: int | None) -> None:
    rates, expected = [], []
    for start in (0, 20, 40):  # pieces of the embedding stage
        for gop in gop_frames(min(20, 47 - start), refresh):
            rates += [0.0] + [0.7] * (len(gop) - 1)
            expected += [frame - gop.start for frame in gop]
    assert ages(np.array(rates, np.float32)).tolist() == expected


def test_a_segment_that_ends_before_its_time_begins_anew() -> None:
    assert ages(np.array([0, 0.5, 0.9, 0, 0, 0.1])).tolist() == [0, 1, 2, 0, 0, 1]
    assert ages(np.array([])).tolist() == []


def test_the_curve_is_the_mean_over_all_frames_of_an_age() -> None:
    frames = {
        "a": (np.array([1.0, 0.9, 0.8, 1.0, 0.7]), np.array([0, 0.5, 0.5, 0, 0.5])),
        "b": (np.array([1.0, 0.5]), np.array([0, 0.9])),
        "c": (np.array([1.0]), np.array([0.0])),
        "d": (np.array([1.0]), np.array([0.0])),
    }
    curve = drift_curve(("cmc", "t=1"), frames)
    # Age 2 is reached by one clip of four: too few to stand beside the others.
    assert [(point.age, point.num_clips, point.num_frames) for point in curve] == [(0, 4, 5), (1, 2, 3)]
    assert [point.cosine for point in curve] == pytest.approx([1.0, (0.9 + 0.7 + 0.5) / 3])
    assert curve[1].ci_low == pytest.approx(0.5)  # both draws are b
    assert curve[1].ci_high == pytest.approx(0.8)  # both are a


def test_each_method_has_a_panel(tmp_path: Path) -> None:
    def curve(method: str, setting: str) -> list:  # type: ignore[type-arg]
        return drift_curve((method, setting), {"a": (np.linspace(1, 0.6, 9), np.linspace(0, 1, 9))})

    plot_drift([curve("cmc", "t=1"), curve("cmc", "t=2"), []], tmp_path / "one.png")
    plot_drift([curve(name, "x") for name in ("cmc", "reusevit", "eventful", "frame_skip")], tmp_path / "four.png")
    one, four = imread(tmp_path / "one.png"), imread(tmp_path / "four.png")
    assert four.shape[0] > 1.5 * one.shape[0]
    assert four.shape[1] > 2 * one.shape[1]
