"""Every method's grid by name, in the order of the plots."""

from __future__ import annotations

from collections.abc import Callable

from reuse_models.method import MethodConfig
from tune_spaces import cmc, eventful, frame_skip
from tune_spaces.tower import Density, Tower

Grid = Callable[[Tower, Density], tuple[MethodConfig, ...]]

GRIDS: dict[str, Grid] = {
    "frame_skip": frame_skip.grid,
    "eventful": eventful.grid,
    "cmc": cmc.grid,
}
