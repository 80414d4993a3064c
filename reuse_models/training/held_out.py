"""What clips that were not trained on say of restoration (ours): how much of it helps, and whether any does.

Corrections are regressed boundary by boundary, each beside a dense tower; in use they feed on each other. All together
may then make worse what each by itself makes better, and what is learned from few clips need not hold for others.
Restoration costs products in every reused patch. With as many more patches may be computed instead, and in the end it
has to be better than that: at equal FLOPs, not at equal reuse. A fit begins with it where it helps at all, since
training may make it worth its price.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch

from reuse_models.flops import PARTS
from reuse_models.reusevit.addon import CORRECTED, Addon
from reuse_models.reusevit.gate import Decision, bias_for
from reuse_models.tower.shape import VitShape
from reuse_models.training.fit import Batch, Fit, Report

SHARES = (1.0, 0.5, 0.25)
LOWER_BIAS = -1.0
"""Of the decisions, at which more is computed: with it and without, what computing more is worth."""
LEAST_ERROR = 1e-7
TRIED_BIASES = (-2.0, -1.0, 0.0)

Batches = Callable[[], Iterable[Batch]]


def begin(fit: Fit, held_out: Batches | None, same: Callable[[float], float] = float) -> tuple[Fit, float]:
    """Take as much of restoration as held-out clips say, and bring a held rate about to its target.

    Args:
        fit: After its warm-up; changed, and not to be used again.
        held_out: Gives the held-out clips anew at each call; None where there are none, and all is left as it is.
        same: Makes a number alike on all workers.

    Returns:
        The fit to train, and its share of restoration.
    """
    share = same(best_share(fit, held_out) if held_out else 1.0)
    if share:
        fit.addon.load_state_dict(scaled(fit.addon, share).state_dict())
    else:
        fit = fit.without_restoration()
    if fit.config.rate == "held":
        shift(fit.addon, same(target_bias(fit, held_out) if held_out else 0.0))
    return fit, share


def best_share(fit: Fit, held_out: Batches) -> float:
    """Return with what share of restoration the loss on held-out clips is least; 0 where it is without any."""
    if not fit.addon.shape.restoration_rank:
        return 0.0
    losses = {share: fit.validate(held_out(), scaled(fit.addon, share)).loss for share in SHARES}
    losses[0.0] = fit.validate(held_out(), fit.addon.without_restoration()).loss
    return min(losses, key=lambda share: losses[share])


def pays(report: Report, fit: Fit, addon: Addon, held_out: Batches) -> bool:
    """Return whether restoration, of which held-out clips say this, beats computing more patches for the same FLOPs."""
    none = addon.without_restoration()
    reports = [fit.validate(held_out(), none, bias) for bias in (0.0, LOWER_BIAS)]
    rate = report.rate * (1 - price(fit.vit.shape, addon.shape.restoration_rank))
    return report.embedding_error < _error_at(rate, *reports)


def price(shape: VitShape, rank: int) -> float:
    """Return what correcting a reused patch costs, as a share of what reusing it saves."""
    saved = sum(PARTS[name].macs(shape) for name in ("query", "key_value", "projection", "mlp"))
    return len(CORRECTED) * 2 * rank * PARTS["restoration"].macs(shape) / saved


def _error_at(rate: float, usual: Report, lower: Report) -> float:
    """Return the error at a rate from those at two: exponential in between and a little beyond."""
    if usual.rate - lower.rate < 1e-3:  # the bias moves nothing
        return usual.embedding_error
    logs = [math.log(max(report.embedding_error, LEAST_ERROR)) for report in (usual, lower)]
    return math.exp(logs[0] + (logs[1] - logs[0]) * (usual.rate - rate) / (usual.rate - lower.rate))


def target_bias(fit: Fit, held_out: Batches) -> float:
    """Return the bias of the decisions at which held-out clips are reused at about the target rate.

    A threshold for pairs of dense frames lets more through in use: a patch that was reused looks like its reference in
    every layer after. Where all of a layer is reused, its decisions have no gradient to come back by.
    """
    rates = [fit.validate(held_out(), bias=bias).rate for bias in TRIED_BIASES]
    return bias_for(fit.loss.target_rate, TRIED_BIASES, rates)


@torch.no_grad()
def shift(addon: Addon, bias: float) -> None:
    """Make a bias of the decisions their own."""
    for decision in addon.decisions:
        assert isinstance(decision, Decision)
        decision.leave.bias[0] += bias


@torch.no_grad()
def scaled(addon: Addon, share: float) -> Addon:
    """Return a copy whose corrections are this share as long."""
    other = copy.deepcopy(addon)
    for boundary in range(addon.shape.num_boundaries):
        other.restoration(boundary).up_4DR.mul_(share)
    return other
