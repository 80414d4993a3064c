from __future__ import annotations

import numpy as np
import pytest

from dejavu.report.overlay import GAP_PX, STRIP_PX, OverlaySize, draw_overlay, highlight
from dejavu.report.reuse_stream import ReusedFrame


def test_what_was_computed_keeps_its_colour_and_what_was_reused_does_not() -> None:
    rgb_HWC = np.zeros((32, 32, 3), np.uint8)
    rgb_HWC[...] = (200, 20, 80)
    shown = highlight(rgb_HWC, np.array([[0.0, 1.0], [0.5, 1.0]]))
    computed, reused, half = shown[4, 4], shown[4, 20], shown[20, 4]
    assert np.ptp(computed) > 60
    assert np.ptp(reused) == 0  # grey
    assert reused.max() < 0.5 * 200
    assert half.astype(int) == pytest.approx((computed.astype(int) + reused) / 2, abs=1)
    assert (shown[:16, :16] == computed).all()


def test_the_frame_stands_beside_its_copy() -> None:
    rng = np.random.default_rng(0)
    reuse_LN = np.ones((5, 5), dtype=bool)
    reuse_LN[:, 0] = False  # CLS, which is never reused
    frame = ReusedFrame(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8), 1.5, reuse_LN)
    size, picture = OverlaySize(32), draw_overlay(frame, 3, "CMC: t=1")
    assert picture.shape == (size.height_px, size.width_px, 3)
    assert size.height_px % 2 == size.width_px % 2 == 0
    left = picture[STRIP_PX : STRIP_PX + size.side_px, : size.side_px]
    right = picture[STRIP_PX : STRIP_PX + size.side_px, size.side_px + GAP_PX :]
    assert (left[:: size.scale, :: size.scale] == frame.rgb_HWC).all()
    assert (np.ptp(right, axis=-1) == 0).all()  # everything was reused: grey
    other = draw_overlay(frame, 4, "CMC: t=1")
    assert (other[: -STRIP_PX // 2] == picture[: -STRIP_PX // 2])[:STRIP_PX].all()  # the same title
    assert (other != picture).any()  # another number below


@pytest.mark.parametrize("frame_px", [32, 128, 224, 384, 512])
def test_small_frames_are_enlarged_by_whole_factors(frame_px: int) -> None:
    size = OverlaySize(frame_px)
    assert size.side_px % frame_px == 0
    assert 384 <= size.side_px < 768


def test_patches_that_do_not_fit_the_frame_are_refused() -> None:
    frame = ReusedFrame(np.zeros((32, 30, 3), np.uint8), 0.0, np.ones((5, 4), dtype=bool))
    with pytest.raises(ValueError, match="got a frame of 30x32 px with 2 patches a side"):
        draw_overlay(frame, 0, "")
