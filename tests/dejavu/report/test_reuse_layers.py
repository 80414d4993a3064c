from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dejavu.report.reuse_layers import LayerRates, layer_rates, plot_layer_rates


def test_a_rate_is_the_share_of_patches_at_one_boundary() -> None:
    reuse_FLN = np.zeros((2, 3, 5), dtype=bool)
    reuse_FLN[0, 0, 1:] = True  # all four patches of one frame in two
    reuse_FLN[:, 1, 2] = True  # one patch of four in both
    assert layer_rates(reuse_FLN, 1).tolist() == [0.5, 0.25, 0.0]
    assert layer_rates(reuse_FLN, 0) == pytest.approx([0.4, 0.2, 0.0])


def test_more_settings_make_a_higher_picture(tmp_path: Path) -> None:
    rows = [LayerRates("cmc", f"t={number}", np.linspace(0, 1, 23)) for number in range(6)]
    plot_layer_rates(rows[:1], tmp_path / "one.png")
    plot_layer_rates(rows, tmp_path / "six.png")
    assert imread(tmp_path / "six.png").shape[0] > 1.5 * imread(tmp_path / "one.png").shape[0]
    with pytest.raises(ValueError, match="got 0 settings"):
        plot_layer_rates([], tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"with \[4, 23\] boundaries"):
        plot_layer_rates([rows[0], LayerRates("cmc", "t=9", np.zeros(4))], tmp_path / "none.png")
