"""ReuseViT: a curve for each trained add-on; without any, forced rates with an add-on that has learned nothing."""

from reuse_models.reusevit import ReuseVitConfig
from tune_spaces.tower import Density, Tower, thin

FORCED_RATES = (0.5, 0.7, 0.8, 0.9, 0.95)


def grid(tower: Tower, density: Density) -> tuple[ReuseVitConfig, ...]:
    """Return the settings to try.

    Of a trained add-on: as trained, and at every bias that was calibrated on validation clips. The names of untrained
    settings say so.
    """
    if tower.trained.addons:
        return tuple(
            ReuseVitConfig(weights=addon.weights, name=addon.name, decision_bias=bias)
            for addon in tower.trained.addons
            for bias in sorted({0.0, *addon.biases})
        )
    return tuple(ReuseVitConfig(forced_rate=rate) for rate in thin(FORCED_RATES, density))
