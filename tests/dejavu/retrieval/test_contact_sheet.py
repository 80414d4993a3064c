"""The sheet holds its pictures where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dejavu.retrieval import contact_sheet
from dejavu.retrieval.contact_sheet import Tile, draw_contact_sheet

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_pictures_stand_in_reading_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "NUM_COLUMNS", 2)
    tiles = [Tile(np.full((16, 16, 3), colour, np.uint8), "1.  $x_1^", "a $ b") for colour in COLOURS]
    draw_contact_sheet(tiles, tmp_path / "sheet.png", title="query")
    sheet_HW3 = imread(tmp_path / "sheet.png")[..., :3]
    middles = []
    for colour in COLOURS:
        rows, columns = np.nonzero((np.abs(sheet_HW3 * 255 - colour) < 2).all(axis=-1))
        middles.append((rows.mean(), columns.mean()))
    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = middles
    assert red_y == pytest.approx(green_y, abs=2)
    assert red_x < green_x
    assert blue_y > red_y + 100
    assert blue_x == pytest.approx(red_x, abs=2)


def test_a_tile_without_picture_is_drawn(tmp_path: Path) -> None:
    draw_contact_sheet([Tile(None, "1", "gone")], tmp_path / "sheet.png", title="query")
    assert imread(tmp_path / "sheet.png").min() < 0.6  # something is written on the white


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contact sheet: got 0 tiles"):
        draw_contact_sheet([], tmp_path / "sheet.png", title="query")
    assert list(tmp_path.iterdir()) == []
