from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dejavu.report.reuse_map import plot_reuse_map, reuse_share


def test_the_share_counts_boundaries_and_leaves_cls_out() -> None:
    reuse_FLN = np.zeros((1, 4, 5), dtype=bool)
    reuse_FLN[0, :, 0] = True  # CLS, never shown
    reuse_FLN[0, :3, 2] = True
    assert reuse_share(reuse_FLN).tolist() == [[[0.0, 0.75], [0.0, 0.0]]]
    assert reuse_share(reuse_FLN[:, :, 1:]).tolist() == [[[0.0, 0.75], [0.0, 0.0]]]


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3), (2, 3, 0)])
def test_tokens_that_are_no_square_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected .F, L, N."):
        reuse_share(np.zeros(shape, dtype=bool))


def test_pictures_classes_and_reuse_stand_side_by_side(tmp_path: Path) -> None:
    rgb_FHWC = np.zeros((12, 32, 32, 3), dtype=np.uint8)
    rgb_FHWC[:, :, :16] = (255, 0, 0)
    reuse_FLN = np.zeros((12, 3, 17), dtype=bool)
    class_FPP = np.full((12, 4, 4), 6.0)
    plot_reuse_map(rgb_FHWC, reuse_FLN, tmp_path / "with.png", class_FPP=class_FPP)
    plot_reuse_map(rgb_FHWC, reuse_FLN, tmp_path / "narrow.png", class_FPP=class_FPP, num_columns=2)
    both, narrow = imread(tmp_path / "with.png"), imread(tmp_path / "narrow.png")
    assert both.shape[0] == narrow.shape[0]
    assert both.shape[1] > narrow.shape[1]  # more columns
    reds = (both[..., :3] == (1.0, 0.0, 0.0)).all(axis=-1).mean()
    oranges = (np.abs(both[..., :3] - (224 / 255, 128 / 255, 58 / 255)) < 0.01).all(axis=-1).mean()
    assert oranges == pytest.approx(2 * reds, rel=0.1)  # intra everywhere, red in half of each picture


@pytest.mark.parametrize(("num_maps", "num_classes"), [(3, 2), (2, 3)])
def test_maps_of_other_frames_are_refused(tmp_path: Path, num_maps: int, num_classes: int) -> None:
    rgb_FHWC, reuse_FLN = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((num_maps, 1, 4), dtype=bool)
    with pytest.raises(ValueError, match=f"got 2 frames, {num_maps} maps"):
        plot_reuse_map(rgb_FHWC, reuse_FLN, tmp_path / "x.png", class_FPP=np.ones((num_classes, 2, 2)))
