"""Every method's grid by name, in the order of the plots."""

from __future__ import annotations

from collections.abc import Callable

from reuse_models.method import MethodConfig
from tune_spaces import cmc, diffrate, eventful, eventful_full, frame_skip, reusevit, tome
from tune_spaces.tower import Density, Tower

Grid = Callable[[Tower, Density], tuple[MethodConfig, ...]]

GRIDS: dict[str, Grid] = {
    "frame_skip": frame_skip.grid,
    "eventful": eventful.grid,
    "eventful_full": eventful_full.grid,
    "cmc": cmc.grid,
    "diffrate": diffrate.grid,
    "tome": tome.grid,
    "reusevit": reusevit.grid,
}
