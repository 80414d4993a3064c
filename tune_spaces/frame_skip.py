"""FrameSkip: how many frames one computed frame stands for."""

from dataclasses import replace

from optuna.distributions import IntDistribution

from reuse_models.baselines.frame_skip import FrameSkipConfig
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

EVERY = (2, 3, 4, 6, 8)
MOST_SKIPPED = 16


def grid(_: GridInputs, density: Density) -> tuple[FrameSkipConfig, ...]:
    """Return the settings to try."""
    repeated = [FrameSkipConfig(every=int(every)) for every in thin(EVERY, density)]
    blended = [replace(config, interpolate=True) for config in repeated]
    return (repeated[0], blended[1]) if density == "tiny" else (*repeated, *blended)


def ranges(_: GridInputs) -> Ranges:
    """Return what a search may try."""
    return Ranges(
        (FrameSkipConfig(), FrameSkipConfig(interpolate=True)), {"every": IntDistribution(EVERY[0], MOST_SKIPPED)}
    )
