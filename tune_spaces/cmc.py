"""CMC: how far a token may move before it is computed again."""

from optuna.distributions import FloatDistribution

from reuse_models.baselines.cmc import CmcConfig, distance_quantiles
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

THRESHOLDS = tuple(range(3, 46, 3))
"""The paper's grid; thresholds grow with the width, so it holds for the paper's towers."""
QUANTILES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.75, 0.9, 0.97)
"""Of the distances seen on validation clips, on any other tower."""
SEARCHED_THRESHOLDS = (1.0, 60.0)
SEARCHED_QUANTILES = (0.05, 0.99)
"""Of the same distances: the ends of the range."""


def grid(inputs: GridInputs, density: Density) -> tuple[CmcConfig, ...]:
    """Return the settings to try; three digits of a threshold are enough, and keep its name readable."""
    if inputs.in_paper and density == "paper":
        return tuple(CmcConfig(threshold=float(threshold)) for threshold in THRESHOLDS)
    distances = inputs.probe(distance_quantiles, thin(QUANTILES, density))
    return tuple(CmcConfig(threshold=threshold) for threshold in dict.fromkeys(float(f"{d:.3g}") for d in distances))


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try."""
    low, high = SEARCHED_THRESHOLDS if inputs.in_paper else inputs.probe(distance_quantiles, SEARCHED_QUANTILES)
    return Ranges((CmcConfig(),), {"threshold": FloatDistribution(low, high)})
