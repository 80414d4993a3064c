"""A setting of every method, for the tests that hold for all of them: a new method joins them here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig, thresholds_for
from reuse_models.baselines.cmc import CmcConfig, distance_quantiles
from reuse_models.baselines.diffrate.method import DiffRateConfig, uniform_schedule
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.key_frames import KeyFramesConfig, key_thresholds
from reuse_models.baselines.low_resolution import LowResolutionConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.baselines.tome import ToMeConfig
from reuse_models.method import MethodConfig
from reuse_models.registry import METHODS
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit


def example_configs(vit: Vit, clips: Sequence[Tensor], *, diffrate_share: float = 0.7) -> dict[str, MethodConfig]:
    """Return settings by name, one or more of each method, that leave out a good part of these clips.

    Args:
        vit: The tower.
        clips: Pixels of streams [frames, 3, side, side], from which thresholds follow.
        diffrate_share: FLOPs of DiffRate over dense: a narrow tower of large patches leaves it little to save.
    """
    shape = vit.shape
    quarter = shape.num_patches // 4
    (distance,) = distance_quantiles(vit, clips, [0.6])
    (moved,) = thresholds_for(clips, [0.5])
    (saved,) = key_thresholds(vit, clips, [0.5])
    prune_kept, merge_kept = uniform_schedule(shape, diffrate_share)
    found = {
        "original": OriginalConfig(),
        "frame_skip": FrameSkipConfig(every=3),
        "frame_skip interpolated": FrameSkipConfig(every=3, interpolate=True),
        "adaptive_skip": AdaptiveSkipConfig(threshold=moved),
        "key_frames": KeyFramesConfig(threshold=saved),
        "low_resolution": LowResolutionConfig(image_px=(shape.patches_per_side * 3 // 4) * shape.patch_px),
        "eventful": EventfulConfig(refreshed_tokens=quarter),
        "eventful_full": EventfulFullConfig(refreshed_tokens=quarter),
        "cmc": CmcConfig(threshold=distance),
        "tome": ToMeConfig(merged_per_layer=max(1, quarter // 2)),
        "residualvit": ResidualVitConfig(every=3, keep=0.3),
        "diffrate": DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept),
        "diffrate sized": DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept, size_aware=True),
        "reusevit": ReuseVitConfig(forced_rate=0.6, inference="compacted", refresh=8),
        "reusevit fixed": ReuseVitConfig(forced_rate=0.6, inference="fixed"),
    }
    missing = METHODS.keys() - {config.method for config in found.values()}
    assert not missing, f"methods: got no example of {missing}, expected one of each; add one here"
    return found
