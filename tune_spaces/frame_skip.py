"""FrameSkip: how many frames one computed frame stands for."""

from reuse_models.frame_skip import FrameSkipConfig
from tune_spaces.tower import Density, Tower, thin

EVERY = (2, 3, 4, 6, 8)


def grid(_: Tower, density: Density) -> tuple[FrameSkipConfig, ...]:
    """Return the settings to try."""
    return tuple(FrameSkipConfig(every=int(every)) for every in thin(EVERY, density))
