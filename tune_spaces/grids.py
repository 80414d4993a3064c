"""What a sweep tries: every method's grid by name, in the order of the plots, and what a search may try beside it.

A method's `..._grid` returns the settings to try, its `..._ranges` what a search may set of its config. Three digits of
a threshold are enough, and keep its name readable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from optuna.distributions import FloatDistribution, IntDistribution

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig, skip_thresholds
from reuse_models.baselines.cmc import CmcConfig, distance_quantiles
from reuse_models.baselines.diffrate.method import DiffRateConfig, uniform_schedule
from reuse_models.baselines.diffrate.schedule import PUBLISHED_SHARES
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.key_frames import KeyFramesConfig, key_thresholds
from reuse_models.baselines.low_resolution import LowResolutionConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.baselines.tome import ToMeConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from tune_spaces.grid_inputs import Density, GridInputs, Ranges, thin, three_digits

EVERY = (2, 3, 4, 6, 8)
MOST_SKIPPED = 16


def frame_skip_grid(_: GridInputs, density: Density) -> tuple[FrameSkipConfig, ...]:
    """How many frames one computed frame stands for, repeated or blended."""
    repeated = [FrameSkipConfig(every=int(every)) for every in thin(EVERY, density)]
    blended = [replace(config, interpolate=True) for config in repeated]
    return (repeated[0], blended[1]) if density == "tiny" else (*repeated, *blended)


def frame_skip_ranges(_: GridInputs) -> Ranges:
    """See `frame_skip_grid`."""
    return Ranges(
        (FrameSkipConfig(), FrameSkipConfig(interpolate=True)), {"every": IntDistribution(EVERY[0], MOST_SKIPPED)}
    )


SKIP_SHARES = (0.9, 0.75, *(1 / every for every in EVERY))
"""Of the frames, computed. The first two lose little, which no FrameSkip does where much moves."""
SEARCHED_SKIP_SHARES = (0.9, 1 / MOST_SKIPPED)
"""Of the frames, computed: the ends of the range."""


def adaptive_skip_grid(inputs: GridInputs, density: Density) -> tuple[AdaptiveSkipConfig, ...]:
    """Thresholds at which validation clips keep as many frames as under FrameSkip, or more."""
    thresholds = map(three_digits, inputs.probe(skip_thresholds, thin(SKIP_SHARES, density)))
    return tuple(AdaptiveSkipConfig(threshold=threshold) for threshold in dict.fromkeys(thresholds))


def adaptive_skip_ranges(inputs: GridInputs) -> Ranges:
    """See `adaptive_skip_grid`."""
    low, high = inputs.probe(skip_thresholds, SEARCHED_SKIP_SHARES)
    return Ranges((AdaptiveSkipConfig(),), {"threshold": FloatDistribution(low, high)})


def key_frames_grid(inputs: GridInputs, density: Density) -> tuple[KeyFramesConfig, ...]:
    """Thresholds at which validation clips keep as many frames as under AdaptiveSkip."""
    thresholds = map(three_digits, inputs.probe(key_thresholds, thin(SKIP_SHARES, density)))
    return tuple(KeyFramesConfig(threshold=threshold) for threshold in dict.fromkeys(thresholds))


def key_frames_ranges(inputs: GridInputs) -> Ranges:
    """See `key_frames_grid`."""
    low, high = inputs.probe(key_thresholds, SEARCHED_SKIP_SHARES)
    return Ranges((KeyFramesConfig(),), {"threshold": FloatDistribution(low, high)})


SIDES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the tower's own side, in whole patches."""


def low_resolution_grid(inputs: GridInputs, density: Density) -> tuple[LowResolutionConfig, ...]:
    """How small frames are."""
    sizes = dict.fromkeys(_image_px(inputs, side) for side in thin(SIDES, density))
    return tuple(LowResolutionConfig(image_px=image_px) for image_px in sizes)


def low_resolution_ranges(inputs: GridInputs) -> Ranges:
    """See `low_resolution_grid`."""
    low, high = _image_px(inputs, SIDES[-1]), _image_px(inputs, SIDES[0])
    return Ranges((LowResolutionConfig(),), {"image_px": IntDistribution(low, high, step=inputs.shape.patch_px)})


def _image_px(inputs: GridInputs, side: float) -> int:
    """Return whole patches, one fewer than the tower's own at least; a tower of one patch has no fewer."""
    own = inputs.shape.patches_per_side
    return max(1, min(own - 1, round(side * own))) * inputs.shape.patch_px


REFRESHED_TOKENS = tuple(range(10, 151, 10))
"""The paper's grid, for its towers of 196 and 256 patches."""
REFRESHED_SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Of the patches, on any other tower."""


def eventful_grid(inputs: GridInputs, density: Density) -> tuple[EventfulConfig, ...]:
    """How many tokens are refreshed at each boundary."""
    if inputs.in_paper and density == "paper":
        return tuple(EventfulConfig(refreshed_tokens=tokens) for tokens in REFRESHED_TOKENS)
    counts = dict.fromkeys(max(1, round(share * inputs.shape.num_patches)) for share in thin(REFRESHED_SHARES, density))
    return tuple(EventfulConfig(refreshed_tokens=count) for count in counts)


def eventful_ranges(inputs: GridInputs) -> Ranges:
    """Any number of patches but all, which would be the dense tower."""
    return Ranges((EventfulConfig(),), {"refreshed_tokens": IntDistribution(1, inputs.shape.num_patches - 1)})


def eventful_full_grid(inputs: GridInputs, density: Density) -> tuple[EventfulFullConfig, ...]:
    """As many tokens, through each gate of the faithful Eventful."""
    counts = [config.refreshed_tokens for config in eventful_grid(inputs, density)]
    return tuple(EventfulFullConfig(refreshed_tokens=count) for count in counts)


def eventful_full_ranges(inputs: GridInputs) -> Ranges:
    """See `eventful_ranges`."""
    return Ranges((EventfulFullConfig(),), eventful_ranges(inputs).fields)


THRESHOLDS = tuple(range(3, 46, 3))
"""The paper's grid; thresholds grow with the width, so it holds for the paper's towers."""
QUANTILES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.75, 0.9, 0.97)
"""Of the distances seen on validation clips, on any other tower."""
SEARCHED_THRESHOLDS = (1.0, 60.0)
SEARCHED_QUANTILES = (0.05, 0.99)
"""Of the same distances: the ends of the range."""


def cmc_grid(inputs: GridInputs, density: Density) -> tuple[CmcConfig, ...]:
    """How far a token may move before it is computed again."""
    if inputs.in_paper and density == "paper":
        return tuple(CmcConfig(threshold=float(threshold)) for threshold in THRESHOLDS)
    distances = map(three_digits, inputs.probe(distance_quantiles, thin(QUANTILES, density)))
    return tuple(CmcConfig(threshold=threshold) for threshold in dict.fromkeys(distances))


def cmc_ranges(inputs: GridInputs) -> Ranges:
    """See `cmc_grid`."""
    low, high = SEARCHED_THRESHOLDS if inputs.in_paper else inputs.probe(distance_quantiles, SEARCHED_QUANTILES)
    return Ranges((CmcConfig(),), {"threshold": FloatDistribution(low, high)})


def diffrate_grid(inputs: GridInputs, density: Density) -> tuple[DiffRateConfig, ...]:
    """The schedules that were searched for the tower; without any, the same rate in every layer."""
    if inputs.trained.schedules:
        return inputs.trained.schedules
    configs = []
    for share in thin(PUBLISHED_SHARES, density):
        prune_kept, merge_kept = uniform_schedule(inputs.shape, share)
        configs.append(DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept, label=f"uniform {share:g}"))
    return tuple(configs)


LEFT_SHARES = (0.75, 0.6, 0.45, 0.3, 0.15)
"""Of the tokens, about what is left after the last layer; the numbers merged follow from the tower's size."""
LEAST_LEFT = 0.1
"""In a search."""


def tome_grid(inputs: GridInputs, density: Density) -> tuple[ToMeConfig, ...]:
    """How many tokens each layer merges away."""
    counts = dict.fromkeys(_merged(inputs, share) for share in thin(LEFT_SHARES, density))
    return tuple(ToMeConfig(merged_per_layer=count) for count in counts)


def tome_ranges(inputs: GridInputs) -> Ranges:
    """See `tome_grid`."""
    return Ranges((ToMeConfig(),), {"merged_per_layer": IntDistribution(1, _merged(inputs, LEAST_LEFT))})


def _merged(inputs: GridInputs, left_share: float) -> int:
    return max(1, round(inputs.shape.num_tokens * (1 - left_share) / inputs.shape.num_layers))


POINTS = ((2, 0.5), (2, 0.25), (3, 0.5), (3, 0.25), (3, 0.15), (5, 0.25), (8, 0.25), (8, 0.15))
"""Frames per key frame, and the share of patches kept of the others. The paper's: (3, 0.15)."""
MOST_APART = 12
LEAST_KEPT, MOST_KEPT = 0.05, 0.75


def residualvit_grid(inputs: GridInputs, density: Density) -> tuple[ResidualVitConfig, ...]:
    """How far key frames are apart, and what is computed of the others; nothing without a trained token."""
    base = inputs.trained.residual
    if base is None:
        return ()
    points = [POINTS[int(place)] for place in thin(range(len(POINTS)), density)]
    return tuple(replace(base, every=every, keep=keep) for every, keep in points)


def residualvit_ranges(inputs: GridInputs) -> Ranges:
    """See `residualvit_grid`."""
    fields = {"every": IntDistribution(2, MOST_APART), "keep": FloatDistribution(LEAST_KEPT, MOST_KEPT)}
    return Ranges((inputs.trained.residual or ResidualVitConfig(),), fields)


FORCED_RATES = (0.5, 0.7, 0.8, 0.9, 0.95)
SEARCHED_RATES = (0.3, 0.98)
SKIPPED_TO = (3 / 4, 1 / 2, 1 / 3)
"""Shares of the frames that are embedded at all, tried with each trained add-on at a few of its biases."""
LEAST_SHARE = 1 / 4
"""Of the frames, embedded in a search."""
BEYOND = 0.5
"""How far past the calibrated biases a search may go, in units of a reuse logit."""


def reusevit_grid(inputs: GridInputs, density: Density) -> tuple[ReuseVitConfig, ...]:
    """A curve for each trained add-on; without any, forced rates with an add-on that has learned nothing.

    Of a trained add-on: as trained, and at every bias that was calibrated on validation clips; at the least, middle and
    largest of them on key frames alone, which the paper's grid has not. The names of untrained settings say so.
    """
    if not inputs.trained.addons:
        return tuple(ReuseVitConfig(forced_rate=rate) for rate in thin(FORCED_RATES, density))
    whole = [
        [replace(addon.config, decision_bias=bias) for bias in sorted({0.0, *addon.biases})]
        for addon in inputs.trained.addons
    ]
    if density == "paper":
        return tuple(chain.from_iterable(whole))
    some = [config for curve in whole for config in dict.fromkeys([curve[0], curve[len(curve) // 2], curve[-1]])]
    thresholds = dict.fromkeys(map(three_digits, inputs.probe(key_thresholds, SKIPPED_TO)))
    return (*chain.from_iterable(whole), *(replace(config, skip=skip) for config in some for skip in thresholds))


def reusevit_ranges(inputs: GridInputs) -> Ranges:
    """A trained add-on, a bias about as large as the calibrated ones, what is skipped."""
    if not inputs.trained.addons:
        return Ranges((ReuseVitConfig(),), {"forced_rate": FloatDistribution(*SEARCHED_RATES)})
    biases = [0.0, *(bias for addon in inputs.trained.addons for bias in addon.biases)]
    bases = tuple(addon.config for addon in inputs.trained.addons)
    bias = FloatDistribution(min(biases) - BEYOND, max(biases) + BEYOND)
    (most,) = inputs.probe(key_thresholds, [LEAST_SHARE])
    return Ranges(bases, {"decision_bias": bias, "skip": FloatDistribution(0.0, most)})


Grid = Callable[[GridInputs, Density], tuple[MethodConfig, ...]]
SPACES: dict[str, tuple[Grid, Callable[[GridInputs], Ranges] | None]] = {
    "frame_skip": (frame_skip_grid, frame_skip_ranges),
    "adaptive_skip": (adaptive_skip_grid, adaptive_skip_ranges),
    "key_frames": (key_frames_grid, key_frames_ranges),
    "low_resolution": (low_resolution_grid, low_resolution_ranges),
    "eventful": (eventful_grid, eventful_ranges),
    "eventful_full": (eventful_full_grid, eventful_full_ranges),
    "cmc": (cmc_grid, cmc_ranges),
    "diffrate": (diffrate_grid, None),  # its schedules are searched by gradient, in the train stage
    "tome": (tome_grid, tome_ranges),
    "residualvit": (residualvit_grid, residualvit_ranges),
    "reusevit": (reusevit_grid, reusevit_ranges),
}
GRIDS = {name: grid for name, (grid, _) in SPACES.items()}
RANGES = {name: ranges for name, (_, ranges) in SPACES.items() if ranges is not None}
