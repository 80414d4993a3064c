"""ReuseViT: a curve for each trained add-on; without any, forced rates with an add-on that has learned nothing."""

from dataclasses import replace
from itertools import chain

from optuna.distributions import FloatDistribution

from reuse_models.reusevit.method import ReuseVitConfig
from tune_spaces.adaptive_skip import skip_thresholds
from tune_spaces.grid_inputs import Density, GridInputs, thin
from tune_spaces.ranges import Ranges

FORCED_RATES = (0.5, 0.7, 0.8, 0.9, 0.95)
SEARCHED_RATES = (0.3, 0.98)
SKIPPED_TO = (3 / 4, 1 / 2, 1 / 3)
"""Shares of the frames that are embedded at all, tried with each trained add-on at a few of its biases."""
LEAST_SHARE = 1 / 4
"""Of the frames, embedded in a search."""
BEYOND = 0.5
"""How far past the calibrated biases a search may go, in units of a reuse logit."""


def grid(inputs: GridInputs, density: Density) -> tuple[ReuseVitConfig, ...]:
    """Return the settings to try.

    Of a trained add-on: as trained, and at every bias that was calibrated on validation clips; at the least, middle and
    largest of them on moved frames alone, which the paper's grid has not. The names of untrained settings say so.
    """
    if inputs.trained.addons:
        whole = [
            [replace(addon.config, decision_bias=bias) for bias in sorted({0.0, *addon.biases})]
            for addon in inputs.trained.addons
        ]
        if density == "paper":
            return tuple(chain.from_iterable(whole))
        some = [config for curve in whole for config in dict.fromkeys([curve[0], curve[len(curve) // 2], curve[-1]])]
        thresholds = dict.fromkeys(float(f"{t:.3g}") for t in inputs.probe(skip_thresholds, SKIPPED_TO))
        return (*chain.from_iterable(whole), *(replace(config, skip=skip) for config in some for skip in thresholds))
    return tuple(ReuseVitConfig(forced_rate=rate) for rate in thin(FORCED_RATES, density))


def ranges(inputs: GridInputs) -> Ranges:
    """Return what a search may try: a trained add-on, a bias about as large as the calibrated ones, what is skipped."""
    if not inputs.trained.addons:
        return Ranges((ReuseVitConfig(),), {"forced_rate": FloatDistribution(*SEARCHED_RATES)})
    biases = [0.0, *(bias for addon in inputs.trained.addons for bias in addon.biases)]
    bases = tuple(addon.config for addon in inputs.trained.addons)
    bias = FloatDistribution(min(biases) - BEYOND, max(biases) + BEYOND)
    (most,) = inputs.probe(skip_thresholds, [LEAST_SHARE])
    return Ranges(bases, {"decision_bias": bias, "skip": FloatDistribution(0.0, most)})
