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

SPACES = {
    "frame_skip": frame_skip,
    "adaptive_skip": adaptive_skip,
    "low_resolution": low_resolution,
    "eventful": eventful,
    "eventful_full": eventful_full,
    "cmc": cmc,
    "diffrate": diffrate,
    "tome": tome,
    "residualvit": residualvit,
    "reusevit": reusevit,
}
GRIDS: dict[str, Grid] = {name: space.grid for name, space in SPACES.items()}
RANGES: dict[str, Callable[[GridInputs], Ranges]] = {
    name: space.ranges for name, space in SPACES.items() if space is not diffrate
}
"""DiffRate has none: its schedules are searched by gradient, in the train stage."""
