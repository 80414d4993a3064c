"""What was reused where: frames, the codec's macroblock classes and the reuse map, side by side.

F frames, H and W pixels, P patches a side, L - 1 boundaries (here named L, as in the map's own axis), N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from dejavu.report.style import INK, MUTED
from dejavu.storage.store import atomic
from dejavu.storage.store_path import StorePath

CLASS_NAMES = {1: "skip", 2: "16×16", 3: "16×8", 4: "8×8", 6: "intra"}
CLASS_COLOURS = ListedColormap(["#e9edf2", "#a9cbe8", "#5b9bd0", "#2a5d9c", "#e0803a"])
CLASS_NORM = BoundaryNorm([0.5, 1.5, 2.5, 3.5, 4.5, 6.5], 5)


def plot_reuse_map(
    rgb_FHWC: NDArray[np.uint8],
    reuse_FLN: NDArray[np.bool_],
    path: StorePath,
    *,
    class_FPP: NDArray[np.floating],
    num_columns: int = 8,
) -> None:
    """Draw some frames of a clip in columns: the picture, the macroblock classes, the share of boundaries reused.

    Args:
        rgb_FHWC: Decoded frames.
        reuse_FLN: True where a token was reused at a boundary; CLS first where N is one more than a square.
        path: A PNG, written whole or not at all.
        class_FPP: Macroblock class 1, 2, 3, 4 or 6 of each patch.
        num_columns: Frames shown, evenly over the clip.

    Raises:
        ValueError: The three are not of the same frames, or N patches are no square.
    """
    share_FPP = reuse_share(reuse_FLN)
    num_frames = len(rgb_FHWC)
    if not len(share_FPP) == len(class_FPP) == num_frames or num_frames == 0 or num_columns < 1:
        raise ValueError(
            f"reuse map: got {num_frames} frames, {len(share_FPP)} maps and {num_columns} columns, expected the same "
            "frames in each and one column or more; pass one clip"
        )
    chosen = np.unique(np.linspace(0, num_frames - 1, min(num_columns, num_frames)).round().astype(int))
    figure, grid = _grid(3, len(chosen))
    extent = (0.0, 1.0, 1.0, 0.0)  # patches and pixels share one square, whatever their numbers
    for column, frame in enumerate(chosen):
        rate = float(share_FPP[frame].mean())
        grid[0, column].set_title(f"frame {frame}\n{rate:.0%} reused", fontsize=8, color=INK, linespacing=1.4)
        grid[0, column].imshow(rgb_FHWC[frame], extent=extent, interpolation="antialiased")
        classes = grid[1, column].imshow(class_FPP[frame], extent=extent, cmap=CLASS_COLOURS, norm=CLASS_NORM)
        shares = grid[-1, column].imshow(share_FPP[frame], extent=extent, cmap="magma", vmin=0, vmax=1)
    for row, name in enumerate(("frame", "codec", "reuse")):
        grid[row, 0].set_ylabel(name, fontsize=9, color=INK, labelpad=8)
    _key(figure, grid[1, -1], classes, dict(zip((1, 2, 3, 4, 5.5), CLASS_NAMES.values(), strict=True)))
    _key(figure, grid[-1, -1], shares, {0: "computed", 0.5: "half", 1: "reused"})
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def reuse_share(reuse_FLN: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return [F, P, P]: the share of boundaries at which each patch was reused, CLS left out.

    Raises:
        ValueError: N is neither a square nor one more.
    """
    num_tokens = reuse_FLN.shape[-1] if reuse_FLN.ndim == 3 else 0
    side = int(num_tokens**0.5)
    first = num_tokens - side * side
    if side == 0 or first not in (0, 1):
        raise ValueError(
            f"reuse map: got shape {reuse_FLN.shape}, expected [F, L, N] with N a square of patches, or one more for "
            "CLS; pass one stream's map"
        )
    share_FPP: NDArray[np.float64] = (
        reuse_FLN[:, :, first:].mean(axis=1, dtype=np.float64).reshape(len(reuse_FLN), side, side)
    )
    return share_FPP


def _grid(num_rows: int, num_columns: int) -> tuple[Figure, NDArray[np.object_]]:
    """Lay out squares of equal size without ticks, room for titles above and for keys at the right; sizes in inches."""
    side, gap, left, right, top, bottom = 1.5, 0.08, 0.4, 1.0, 0.5, 0.1
    width = left + num_columns * (side + gap) + right
    height = top + num_rows * (side + gap) + bottom
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    grid = np.empty((num_rows, num_columns), dtype=object)
    for row, column in np.ndindex(grid.shape):
        corner = (left + column * (side + gap), height - top - row * (side + gap) - side)
        axes = figure.add_axes((corner[0] / width, corner[1] / height, side / width, side / height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        grid[row, column] = axes
    return figure, grid


def _key(figure: Figure, beside: Axes, picture: AxesImage, names: Mapping[float, str]) -> None:
    """Draw a picture's colours at its right, as high as it is."""
    box = beside.get_position()
    bar = figure.colorbar(picture, cax=figure.add_axes((box.x1 + 0.012, box.y0, 0.012, box.height)), ticks=list(names))
    bar.ax.set_yticklabels(list(names.values()), fontsize=7.5, color=MUTED)
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
