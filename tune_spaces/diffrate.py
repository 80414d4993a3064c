"""DiffRate: the schedules that were searched for the tower; without any, the same rate in every layer."""

from reuse_models.baselines.diffrate.method import DiffRateConfig, uniform_schedule
from reuse_models.baselines.diffrate.schedule import PUBLISHED_SHARES
from tune_spaces.grid_inputs import Density, GridInputs, thin


def grid(inputs: GridInputs, density: Density) -> tuple[DiffRateConfig, ...]:
    """Return the settings to try."""
    if inputs.trained.schedules:
        return inputs.trained.schedules
    configs = []
    for share in thin(PUBLISHED_SHARES, density):
        prune_kept, merge_kept = uniform_schedule(inputs.shape, share)
        configs.append(DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept, label=f"uniform {share:g}"))
    return tuple(configs)
