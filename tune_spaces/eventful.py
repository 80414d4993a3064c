"""Eventful: how many tokens are refreshed at each boundary."""

from optuna.distributions import IntDistribution

from reuse_models.baselines.eventful import EventfulConfig
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

REFRESHED_TOKENS = tuple(range(10, 151, 10))
"""The paper's grid, for its towers of 196 and 256 patches."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Of the patches, on any other tower."""


def grid(inputs: GridInputs, density: Density) -> tuple[EventfulConfig, ...]:
    """Return the settings to try."""
    if inputs.in_paper and density == "paper":
        return tuple(EventfulConfig(refreshed_tokens=tokens) for tokens in REFRESHED_TOKENS)
    counts = dict.fromkeys(max(1, round(share * inputs.shape.num_patches)) for share in thin(SHARES, density))
    return tuple(EventfulConfig(refreshed_tokens=count) for count in counts)


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try: any number of patches but all, which would be the dense tower."""
    return Ranges((EventfulConfig(),), {"refreshed_tokens": IntDistribution(1, inputs.shape.num_patches - 1)})
