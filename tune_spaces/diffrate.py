"""DiffRate: the share of dense FLOPs that its schedule keeps."""

from reuse_models.diffrate import DiffRateConfig, uniform_schedule
from tune_spaces.tower import Density, Tower, thin

FLOPS_SHARES = (0.505, 0.565, 0.627, 0.689, 0.751)
"""The published targets (31.0 34.7 38.5 42.3 46.1 GMAC of ViT-L at 197 tokens) as shares of dense."""


def grid(tower: Tower, density: Density) -> tuple[DiffRateConfig, ...]:
    """Return the settings to try; none on a tower without CLS, whose tokens DiffRate cannot rank."""
    if not tower.shape.has_cls:
        raise ValueError("got a tower without CLS, expected CLIP; DiffRate ranks tokens by CLS attention")
    configs = []
    for share in thin(FLOPS_SHARES, density):
        prune_kept, merge_kept = uniform_schedule(tower.shape, share)
        configs.append(DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept, label=f"uniform {share:g}"))
    return tuple(configs)
