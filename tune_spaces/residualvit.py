"""ResidualViT: how far key frames are apart, and what is computed of the others; nothing without a trained token."""

from dataclasses import replace

from optuna.distributions import FloatDistribution, IntDistribution

from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

POINTS = ((2, 0.5), (2, 0.25), (3, 0.5), (3, 0.25), (3, 0.15), (5, 0.25), (8, 0.25), (8, 0.15))
"""Frames per key frame, and the share of patches kept of the others. The paper's: (3, 0.15)."""
MOST_APART = 12
LEAST_KEPT, MOST_KEPT = 0.05, 0.75


def grid(inputs: GridInputs, density: Density) -> tuple[ResidualVitConfig, ...]:
    """Return the settings to try."""
    base = inputs.trained.residual
    if base is None:
        return ()
    points = [POINTS[int(place)] for place in thin(range(len(POINTS)), density)]
    return tuple(replace(base, every=every, keep=keep) for every, keep in points)


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try."""
    fields = {"every": IntDistribution(2, MOST_APART), "keep": FloatDistribution(LEAST_KEPT, MOST_KEPT)}
    return Ranges((inputs.trained.residual or ResidualVitConfig(),), fields)
