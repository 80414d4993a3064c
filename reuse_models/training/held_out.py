"""What clips that were not trained on say of restoration (ours): how much of it helps, and whether any does.

Corrections are regressed boundary by boundary, each beside a dense tower; in use they feed on each other. All together
may then make worse what each by itself makes better, and what is learned from few clips need not hold for others.
Restoration costs products in every reused patch: where it does not help, it is not paid for either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch

from reuse_models.reusevit.addon import Addon
from reuse_models.training.fit import Batch, Fit

SHARES = (1.0, 0.5, 0.25)
LEAST_GAIN = 0.02
"""Share of the loss by which restoration must be better than none, which costs less."""

Batches = Callable[[], Iterable[Batch]]


def best_share(fit: Fit, held_out: Batches, shares: Sequence[float] = SHARES) -> float:
    """Return what share of restoration is best on held-out clips; 0 where none at all is about as good.

    Args:
        fit: After its warm-up.
        held_out: Gives the held-out clips anew at each call.
        shares: Tried, beside none at all.
    """
    if not fit.addon.shape.restoration_rank:
        return 0.0
    losses = {share: fit.validate(held_out(), scaled(fit.addon, share)).loss for share in shares}
    best = min(losses, key=lambda share: losses[share])
    return best if pays(losses[best], fit, fit.addon, held_out) else 0.0


def pays(loss: float, fit: Fit, addon: Addon, held_out: Batches) -> bool:
    """Return whether restoration, which comes to this loss on held-out clips, is worth what it costs."""
    return loss < (1 - LEAST_GAIN) * fit.validate(held_out(), addon.without_restoration()).loss


@torch.no_grad()
def scaled(addon: Addon, share: float) -> Addon:
    """Return a copy whose corrections are this share as long."""
    other = copy.deepcopy(addon)
    for boundary in range(addon.shape.num_boundaries):
        other.restoration(boundary).up_4DR.mul_(share)
    return other
