"""AdaptiveSkip: thresholds at which validation clips keep as many frames as under FrameSkip, or more."""

from collections.abc import Iterable, Sequence

from optuna.distributions import FloatDistribution
from torch import Tensor

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig, thresholds_for
from reuse_models.tower.vit import Vit
from tune_spaces.frame_skip import EVERY, MOST_SKIPPED
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

SHARES = (0.9, 0.75, *(1 / every for every in EVERY))
"""Of the frames, computed. The first two lose little, which no FrameSkip does where much moves."""
SEARCHED_SHARES = (0.9, 1 / MOST_SKIPPED)
"""Of the frames, computed: the ends of the range."""


def skip_thresholds(_: Vit, clips_F3HW: Iterable[Tensor], shares: Sequence[float]) -> list[float]:
    """Return those at which these shares of the frames are computed, whatever the tower."""
    return thresholds_for(clips_F3HW, shares)


def grid(inputs: GridInputs, density: Density) -> tuple[AdaptiveSkipConfig, ...]:
    """Return the settings to try; three digits of a threshold are enough, and keep its name readable."""
    thresholds = inputs.probe(skip_thresholds, thin(SHARES, density))
    return tuple(AdaptiveSkipConfig(threshold=t) for t in dict.fromkeys(float(f"{t:.3g}") for t in thresholds))


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try."""
    low, high = inputs.probe(skip_thresholds, SEARCHED_SHARES)
    return Ranges((AdaptiveSkipConfig(),), {"threshold": FloatDistribution(low, high)})
