"""ReuseViT: a curve for each trained add-on; without any, forced rates with an add-on that has learned nothing."""

from dataclasses import replace

from optuna.distributions import FloatDistribution

from reuse_models.reusevit.method import ReuseVitConfig
from tune_spaces.ranges import Ranges
from tune_spaces.tower import Density, Tower, thin

FORCED_RATES = (0.5, 0.7, 0.8, 0.9, 0.95)
SEARCHED_RATES = (0.3, 0.98)
BEYOND = 0.5
"""How far past the calibrated biases a search may go, in units of a reuse logit."""


def grid(tower: Tower, density: Density) -> tuple[ReuseVitConfig, ...]:
    """Return the settings to try.

    Of a trained add-on: as trained, and at every bias that was calibrated on validation clips. The names of untrained
    settings say so.
    """
    if tower.trained.addons:
        return tuple(
            replace(addon.config, decision_bias=bias)
            for addon in tower.trained.addons
            for bias in sorted({0.0, *addon.biases})
        )
    return tuple(ReuseVitConfig(forced_rate=rate) for rate in thin(FORCED_RATES, density))


def ranges(tower: Tower) -> Ranges:
    """Return what a search may try: which trained add-on, and a bias about as large as the calibrated ones."""
    if not tower.trained.addons:
        return Ranges((ReuseVitConfig(),), {"forced_rate": FloatDistribution(*SEARCHED_RATES)})
    biases = [0.0, *(bias for addon in tower.trained.addons for bias in addon.biases)]
    bases = tuple(addon.config for addon in tower.trained.addons)
    return Ranges(bases, {"decision_bias": FloatDistribution(min(biases) - BEYOND, max(biases) + BEYOND)})
