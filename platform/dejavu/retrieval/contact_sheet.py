"""A contact sheet: pictures with captions, row by row. H and W pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dejavu.report.style import INK, MUTED
from dejavu.storage.store import atomic
from dejavu.storage.store_path import StorePath

TILE_IN = 2.1
CAPTION_IN = 0.5
TITLE_IN = 0.5
DPI = 110
NUM_COLUMNS = 5
"""Pictures in a row."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of the sheet."""

    rgb_HW3: NDArray[np.uint8] | None
    """None where there is no picture to show: the tile says so."""
    title: str
    caption: str


def draw_contact_sheet(tiles: Sequence[Tile], path: StorePath, *, title: str) -> None:
    """Draw pictures in reading order, each with a line in ink and one in grey below it, as a PNG, whole or not at all.

    Raises:
        ValueError: There is no tile.
    """
    if not tiles:
        raise ValueError("contact sheet: got 0 tiles, expected 1 or more")
    columns = min(NUM_COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    width, height = columns * TILE_IN, TITLE_IN + rows * (TILE_IN + CAPTION_IN)
    figure = Figure(figsize=(max(width, 2 * TILE_IN), height), dpi=DPI, facecolor="white")
    across, tall = 1 / figure.get_figwidth(), 1 / height
    margin = 0.06
    figure.text(
        margin * across, 1 - 0.3 * tall, title, color=INK, size=12, weight="bold", va="center", parse_math=False
    )
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left = (column * TILE_IN + margin) * across
        low = 1 - (TITLE_IN + row * (TILE_IN + CAPTION_IN) + TILE_IN - margin) * tall
        side = TILE_IN - 2 * margin
        axes = figure.add_axes((left, low, side * across, side * tall))
        axes.set_axis_off()
        if tile.rgb_HW3 is None:
            axes.text(0.5, 0.5, "no picture", color=MUTED, ha="center", va="center", transform=axes.transAxes)
        else:
            axes.imshow(tile.rgb_HW3, interpolation="lanczos")
        figure.text(left, low - 0.06 * tall, tile.title, color=INK, size=9, va="top", parse_math=False)
        figure.text(left, low - 0.24 * tall, tile.caption, color=MUTED, size=8, va="top", parse_math=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
