"""Relaxed DiffRate against the method itself, and its gradient against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reuse_models.baselines.diffrate.method import DiffRate, DiffRateConfig, relaxed_work
from reuse_models.baselines.diffrate.relaxed import RelaxedCounts, relaxed_embed
from reuse_models.flops import flops_per_frame
from reuse_models.tower.vit import Vit

SCHEDULES = [((14, 9, 5), (11, 6, 4)), ((17, 8, 8), (17, 8, 8)), ((17, 9, 9), (9, 9, 9)), ((17,) * 3, (17,) * 3)]


def counts(pruned: tuple[float, ...], merged: tuple[float, ...]) -> RelaxedCounts:
    return RelaxedCounts(
        torch.tensor(pruned[:2], dtype=torch.float64, requires_grad=True),
        torch.tensor(merged[:2], dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize(("pruned", "merged"), SCHEDULES)
def test_with_a_closed_window_it_is_the_method_under_rounded_counts(
    clip_vit: Vit, ragged_clips: tuple[Tensor, ...], pruned: tuple[int, ...], merged: tuple[int, ...]
) -> None:
    with torch.no_grad():
        expected = DiffRate(DiffRateConfig(prune_kept=pruned, merge_kept=merged), clip_vit).embed(ragged_clips[0])
        for off in (0.0, -0.3, 0.3):
            near = [tuple(min(17.0, kept + off) for kept in kept_l) for kept_l in (pruned, merged)]
            found = relaxed_embed(clip_vit, ragged_clips[0], counts(near[0], near[1]), 0.0)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_the_embedding(clip_vit: Vit, ragged_clips: tuple[Tensor, ...]) -> None:
    vit, frames = clip_vit.double(), ragged_clips[0].double()

    def value(x: RelaxedCounts) -> Tensor:
        return relaxed_embed(vit, frames, x, 0.3)[:, 0].sum()

    at = counts((13.8, 9.2, 5.0), (10.9, 6.1, 4.0))
    gradients = torch.autograd.grad(value(at), (at.pruned_l, at.merged_l))
    step = 1e-5
    for which, gradient_l in enumerate(gradients):
        assert gradient_l.abs().min() > 0
        for layer in range(2):
            values = []
            for sign in (1, -1):
                moved = [at.pruned_l.detach().clone(), at.merged_l.detach().clone()]
                moved[which][layer] += sign * step
                values.append(float(value(RelaxedCounts(*moved))))
            assert float(gradient_l[layer]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-7)


def test_the_cost_of_real_numbers_meets_that_of_whole_ones_and_has_a_gradient(clip_vit: Vit) -> None:
    at = counts((14, 9, 5), (11, 6, 4))
    cost = flops_per_frame(clip_vit.shape, relaxed_work(clip_vit.shape, at.pruned_l, at.merged_l))[0]
    (towards_l,) = torch.autograd.grad(cost, at.merged_l)
    for layer in range(2):
        moved = at.merged_l.detach().clone()
        moved[layer] += 1e-3
        more = flops_per_frame(clip_vit.shape, relaxed_work(clip_vit.shape, at.pruned_l.detach(), moved))[0]
        assert float(towards_l[layer]) == pytest.approx(float(more - cost.detach()) / 1e-3, rel=1e-3)
