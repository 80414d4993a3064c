"""A video beside itself with what was recomputed: reused patches grey and dark, recomputed ones in colour.

H and W pixels, P patches a side, L - 1 boundaries (here named L), N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dejavu.report.reuse_map import reuse_share
from dejavu.report.reuse_stream import ReusedFrame

LEAST_PX = 384
"""Frames are enlarged, by whole factors, until a side has so many pixels."""
STRIP_PX = 48
"""Height of the lines above and below the pictures."""
GAP_PX = 8
DIM = 0.45
"""Brightness of what was reused at every boundary."""
HIGHLIGHT_RGB = np.array([255, 140, 0], np.float32)
HIGHLIGHT = 0.3
"""Share of the highlight's colour in a patch that was computed at every boundary."""
_BACKGROUND, _INK = "#14181e", "#f2f4f7"
_DOTS_PER_INCH = 100


@dataclass(frozen=True, slots=True)
class OverlaySize:
    """Where things lie in a picture of the overlay."""

    frame_px: int

    @property
    def scale(self) -> int:
        """Pixels drawn for one pixel of a frame."""
        return max(1, -(-LEAST_PX // self.frame_px))

    @property
    def side_px(self) -> int:
        """Of one of both pictures."""
        return self.scale * self.frame_px

    @property
    def width_px(self) -> int:
        """Of the whole; even, as H.264 wants it."""
        return 2 * (self.side_px + GAP_PX // 2)

    @property
    def height_px(self) -> int:
        """Of the whole; even."""
        return 2 * -(-(self.side_px + 2 * STRIP_PX) // 2)


def draw_overlay(frame: ReusedFrame, number: int, title: str) -> NDArray[np.uint8]:
    """Draw one frame, numbered from 0: title, the frame and its copy side by side, and what share of it was reused.

    Returns:
        RGB [height_px, width_px, 3] of OverlaySize.

    Raises:
        ValueError: The frame is not a square of whole patches.
    """
    side_px = frame.rgb_HWC.shape[0]
    share_PP = reuse_share(frame.reuse_LN[None])[0]
    if frame.rgb_HWC.shape[:2] != (side_px, side_px) or side_px % len(share_PP):
        raise ValueError(
            f"overlay: got a frame of {frame.rgb_HWC.shape[1]}x{side_px} px with {len(share_PP)} patches a side, "
            "expected a square of whole patches; transcode the video for this tower"
        )
    size = OverlaySize(side_px)
    picture = np.zeros((size.height_px, size.width_px, 3), np.uint8)
    picture[:] = np.array([int(_BACKGROUND[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    top, right = STRIP_PX, size.side_px + GAP_PX
    for left, rgb_HWC in ((0, frame.rgb_HWC), (right, highlight(frame.rgb_HWC, share_PP))):
        large = rgb_HWC.repeat(size.scale, axis=0).repeat(size.scale, axis=1)
        picture[top : top + size.side_px, left : left + size.side_px] = large
    picture[:top] = _line(title, "recomputed in colour", size.width_px)
    reused = f"{100 * share_PP.mean():.1f} % of patches reused"
    foot = top + size.side_px
    picture[foot : foot + STRIP_PX] = _line(f"frame {number}   {frame.seconds:.1f} s", reused, size.width_px)
    return picture


def highlight(rgb_HWC: NDArray[np.uint8], share_PP: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Darken each patch to grey by the share of boundaries at which it was reused, and tint what was computed."""
    patch_px = len(rgb_HWC) // len(share_PP)
    reused_HW1 = share_PP.repeat(patch_px, axis=0).repeat(patch_px, axis=1)[..., None].astype(np.float32)
    rgb = rgb_HWC.astype(np.float32)
    grey = rgb.mean(axis=-1, keepdims=True) * DIM
    tinted = (1 - HIGHLIGHT) * rgb + HIGHLIGHT * HIGHLIGHT_RGB
    shown: NDArray[np.uint8] = (reused_HW1 * grey + (1 - reused_HW1) * tinted).round().astype(np.uint8)
    return shown


@lru_cache(maxsize=64)
def _line(left: str, right: str, width_px: int) -> NDArray[np.uint8]:
    """Return [STRIP_PX, width_px, 3]: one text at each end."""
    inches = (width_px / _DOTS_PER_INCH, STRIP_PX / _DOTS_PER_INCH)
    figure = Figure(figsize=inches, dpi=_DOTS_PER_INCH, facecolor=_BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    figure.text(8 / width_px, 0.5, left, color=_INK, fontsize=11, va="center", ha="left", parse_math=False)
    figure.text(1 - 8 / width_px, 0.5, right, color=_INK, fontsize=11, va="center", ha="right", parse_math=False)
    canvas.draw()  # type: ignore[no-untyped-call]
    line: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba(), np.uint8)[:, :, :3].copy()  # type: ignore[no-untyped-call]
    return line
