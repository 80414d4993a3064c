"""LowResolution: how small frames are."""

from optuna.distributions import IntDistribution

from reuse_models.baselines.low_resolution import LowResolutionConfig
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

SIDES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the tower's own side, in whole patches."""


def grid(inputs: GridInputs, density: Density) -> tuple[LowResolutionConfig, ...]:
    """Return the settings to try."""
    sizes = dict.fromkeys(_image_px(inputs, side) for side in thin(SIDES, density))
    return tuple(LowResolutionConfig(image_px=image_px) for image_px in sizes)


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try."""
    low, high = _image_px(inputs, SIDES[-1]), _image_px(inputs, SIDES[0])
    return Ranges((LowResolutionConfig(),), {"image_px": IntDistribution(low, high, step=inputs.shape.patch_px)})


def _image_px(inputs: GridInputs, side: float) -> int:
    """Return whole patches, one fewer than the tower's own at least; a tower of one patch has no fewer."""
    own = inputs.shape.patches_per_side
    return max(1, min(own - 1, round(side * own))) * inputs.shape.patch_px
