"""Every method's grid by name, in the order of the plots, and what a search may try beside it."""

from __future__ import annotations

from collections.abc import Callable

from reuse_models.method import MethodConfig
from tune_spaces import (
    adaptive_skip,
    cmc,
    diffrate,
    eventful,
    eventful_full,
    frame_skip,
    low_resolution,
    residualvit,
    reusevit,
    tome,
)
from tune_spaces.grid_inputs import Density, GridInputs
from tune_spaces.ranges import Ranges

Grid = Callable[[GridInputs, Density], tuple[MethodConfig, ...]]

GRIDS: dict[str, Grid] = {
    "frame_skip": frame_skip.grid,
    "adaptive_skip": adaptive_skip.grid,
    "low_resolution": low_resolution.grid,
    "eventful": eventful.grid,
    "eventful_full": eventful_full.grid,
    "cmc": cmc.grid,
    "diffrate": diffrate.grid,
    "tome": tome.grid,
    "residualvit": residualvit.grid,
    "reusevit": reusevit.grid,
}

RANGES: dict[str, Callable[[GridInputs], Ranges]] = {
    "frame_skip": frame_skip.ranges,
    "adaptive_skip": adaptive_skip.ranges,
    "low_resolution": low_resolution.ranges,
    "eventful": eventful.ranges,
    "eventful_full": eventful_full.ranges,
    "cmc": cmc.ranges,
    "tome": tome.ranges,
    "residualvit": residualvit.ranges,
    "reusevit": reusevit.ranges,
}
"""DiffRate has none: its schedules are searched by gradient, in the train stage."""
