"""ReuseViT without training: a forced reuse rate, restored by an add-on that has learned nothing."""

from reuse_models.reusevit import ReuseVitConfig
from tune_spaces.tower import Density, Tower, thin

FORCED_RATES = (0.5, 0.7, 0.8, 0.9, 0.95)


def grid(_: Tower, density: Density) -> tuple[ReuseVitConfig, ...]:
    """Return the settings to try; their names say that they are untrained."""
    return tuple(ReuseVitConfig(forced_rate=rate) for rate in thin(FORCED_RATES, density))
