"""ToMe: how many tokens each layer merges away."""

from optuna.distributions import IntDistribution

from reuse_models.baselines.tome import ToMeConfig
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

KEPT_SHARES = (0.75, 0.6, 0.45, 0.3, 0.15)
"""Of the tokens, about what is left after the last layer; the numbers merged follow from the tower's size."""
LEAST_KEPT = 0.1
"""In a search."""


def grid(inputs: GridInputs, density: Density) -> tuple[ToMeConfig, ...]:
    """Return the settings to try."""
    shape = inputs.shape
    counts = [round(shape.num_tokens * (1 - share) / shape.num_layers) for share in thin(KEPT_SHARES, density)]
    return tuple(ToMeConfig(merged_per_layer=count) for count in dict.fromkeys(max(1, count) for count in counts))


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try."""
    shape = inputs.shape
    most = max(1, round(shape.num_tokens * (1 - LEAST_KEPT) / shape.num_layers))
    return Ranges((ToMeConfig(),), {"merged_per_layer": IntDistribution(1, most)})
