from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dejavu.drift import ages, drift_curve, plot_drift, refresh_period
from reuse_models.cmc import CmcConfig
from reuse_models.frame_order import segment_frames
from reuse_models.frame_skip import FrameSkipConfig
from reuse_models.reusevit import ReuseVitConfig


@pytest.mark.parametrize("refresh", [1, 3, 8, None])
def test_a_frame_is_as_old_as_its_segment_says(refresh: int | None) -> None:
    period = refresh_period(ReuseVitConfig(refresh=refresh), 20)
    expected = []
    for start in (0, 20, 40):  # pieces of the embedding stage
        for segment in segment_frames(min(20, 47 - start), refresh):
            expected += [frame - segment.start for frame in segment]
    assert ages(47, 20, period).tolist() == expected


def test_frame_skip_computes_every_nth_frame_and_others_begin_with_a_piece() -> None:
    assert ages(5, 512, refresh_period(FrameSkipConfig(every=3), 512)).tolist() == [0, 1, 2, 0, 1]
    assert refresh_period(CmcConfig(threshold=1.0), 512) == 512
    with pytest.raises(ValueError, match="ages: got 3 frames, segments of 4 and a period of 0"):
        ages(3, 4, 0)


def test_the_curve_is_the_mean_over_all_frames_of_an_age() -> None:
    cosines = {
        "a": np.array([1.0, 0.9, 0.8, 1.0, 0.7]),
        "b": np.array([1.0, 0.5]),
        "c": np.array([1.0]),
        "d": np.array([1.0]),
    }
    curve = drift_curve(("cmc", "t=1"), cosines, segment_frames=3, period=3)
    # Age 2 is reached by one clip of four: too few to stand beside the others.
    assert [(point.age, point.num_clips, point.num_frames) for point in curve] == [(0, 4, 5), (1, 2, 3)]
    assert [point.cosine for point in curve] == pytest.approx([1.0, (0.9 + 0.7 + 0.5) / 3])
    assert curve[1].ci_low == pytest.approx(0.5)  # both draws are b
    assert curve[1].ci_high == pytest.approx(0.8)  # both are a


def test_each_method_has_a_panel(tmp_path: Path) -> None:
    def curve(method: str, setting: str) -> list:  # type: ignore[type-arg]
        return drift_curve((method, setting), {"a": np.linspace(1, 0.6, 9)}, 512, 512)

    plot_drift([curve("cmc", "t=1"), curve("cmc", "t=2"), []], tmp_path / "one.png")
    plot_drift([curve(name, "x") for name in ("cmc", "reusevit", "eventful", "frame_skip")], tmp_path / "four.png")
    one, four = imread(tmp_path / "one.png"), imread(tmp_path / "four.png")
    assert four.shape[0] > 1.5 * one.shape[0]
    assert four.shape[1] > 2 * one.shape[1]
    with pytest.raises(ValueError, match="no curve with a point"):
        plot_drift([[]], tmp_path / "none.png")
