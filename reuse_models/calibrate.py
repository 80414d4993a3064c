"""The runtime knob: the bias on the decision logits at which a trained add-on reuses a requested share of tokens.

Decisions feed back: a token reused now changes what is compared later. So logits of one run do not tell what another
bias gives; each guess is run on the given clips, and the rate that comes out is what counts.

Shapes: F frames of a clip, P patches a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.gate import check_rate
from reuse_models.method import Chunk
from reuse_models.reusevit import ReuseVit, ReuseVitConfig
from reuse_models.vit import Vit

FIRST_STEP = 0.5
"""Logits; doubled until the requested rate lies between two biases."""
WIDEST = 2.0**12
MOST_RUNS = 24
"""Passes over the clips after which the nearest bias so far is returned."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What calibration found."""

    config: ReuseVitConfig
    """The one given, with its decision_bias set."""
    reuse_rate: float
    """On the given clips: tokens reused over all tokens of all frames, dense frames and CLS in the denominator."""
    reached: bool
    """Within the tolerance. No bias reuses CLS or dense frames, so that a rate may be out of reach."""


def calibrate(
    config: ReuseVitConfig,
    vit: Vit,
    clips: Sequence[tuple[Tensor, Tensor]],
    reuse_rate: float,
    tolerance: float = 0.005,
) -> Calibrated:
    """Find the decision bias that reuses `reuse_rate` of all tokens on these clips.

    Args:
        config: A trained add-on's; its own bias is replaced.
        vit: The tower.
        clips: Per clip pixels [F, 3, H, W] and codec grids [F, 4, P, P]. Validation clips: test clips report.
        reuse_rate: Requested, 0..1.
        tolerance: Largest difference of the rate that ends the search.

    Raises:
        ValueError: The rate is outside 0..1, a rate is forced, or there are no clips.
    """
    check_rate(reuse_rate)
    if config.forced_rate is not None:
        raise ValueError("calibrate: got a forced rate, expected a trained decision; drop forced_rate")
    if not clips or not sum(len(pixels) for pixels, _ in clips):
        raise ValueError("calibrate: got no frames, expected validation clips; pass some")
    addon = config.addon(vit)
    tried: list[tuple[float, float]] = []

    def rate_at(bias: float) -> float:
        method = ReuseVit(dataclasses.replace(config, decision_bias=bias), vit, addon)
        tried.append((bias, _rate(method, clips)))
        return tried[-1][1]

    rate, low, high, step = rate_at(0.0), 0.0, 0.0, FIRST_STEP
    upwards = rate < reuse_rate
    while abs(rate - reuse_rate) > tolerance and (rate < reuse_rate) == upwards and step <= WIDEST:
        if len(tried) >= MOST_RUNS:
            break
        low, high = (high, high + step) if upwards else (low - step, low)
        rate = rate_at(high if upwards else low)
        step *= 2
    while abs(rate - reuse_rate) > tolerance and len(tried) < MOST_RUNS and high - low > 1e-6:
        middle = (low + high) / 2
        rate = rate_at(middle)
        low, high = (middle, high) if rate < reuse_rate else (low, middle)
    bias, rate = min(tried, key=lambda one: abs(one[1] - reuse_rate))
    return Calibrated(dataclasses.replace(config, decision_bias=bias), rate, abs(rate - reuse_rate) <= tolerance)


@torch.no_grad()
def _rate(method: ReuseVit, clips: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the share of tokens reused, clips weighed by their frames."""
    reused, total = 0, 0
    for pixels_F3HW, codec_F4PP in clips:
        encoded = method.encode(Chunk((pixels_F3HW,), (codec_F4PP,), (True,)), method.start(1))
        reused += int(encoded.reuse[0].sum())
        total += encoded.reuse[0].numel()
    return reused / total
