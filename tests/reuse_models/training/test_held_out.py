"""Restoration is taken as far as held-out clips say, and not at all where it does harm."""

from __future__ import annotations

import torch

from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.tower.vit import Vit
from reuse_models.training.fit import Batch, Fit, FitConfig
from reuse_models.training.held_out import best_share, pays, scaled
from reuse_models.training.loss import LossConfig, Teacher
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs, warm_up

LOSS = LossConfig(target_rate=0.8, second_last_weight=0.0)
CONFIG = FitConfig(restoration_rank=16, decision_hidden=16)


def clips(vit: Vit, seed: int) -> Batch:
    """Four clips whose patches change a little, along directions that all clips share."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(4, 1, 3, 32, 32, generator=generator)
    ways = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    pixels = first + torch.einsum("cfw,wxyz->cfxyz", torch.randn(4, 6, 2, generator=generator), 0.5 * ways)
    codec = torch.rand(4, 6, 4, 4, 4, 4, generator=generator)
    return Batch(pixels, codec, Teacher(vit(pixels.flatten(0, 1)).unflatten(0, (4, 6))))


def started(vit: Vit, batch: Batch) -> Fit:
    fit = Fit(vit, LOSS, CONFIG)
    config = WarmUpConfig(steps=200)
    warm_up({0.8: fit.addon}, gather_pairs(vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, config), config)
    return fit


def test_what_helps_on_the_clips_it_was_fitted_to_is_kept(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    losses = {share: fit.validate([batch], scaled(fit.addon, share)).loss for share in (1.0, 0.5, 0.25)}
    assert min(losses.values()) < 0.98 * fit.validate([batch], fit.addon.without_restoration()).loss
    assert best_share(fit, lambda: [batch]) == min(losses, key=lambda share: losses[share])


def test_what_harms_is_left_out(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    worse = scaled(fit.addon, -1.0)  # away from where it ought to go
    fit.addon.load_state_dict(worse.state_dict())
    assert best_share(fit, lambda: [batch]) == 0
    assert not pays(fit.validate([batch]).loss, fit, fit.addon, lambda: [batch])


def test_judging_shares_changes_nothing(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    before = {name: weight.clone() for name, weight in fit.addon.state_dict().items()}
    best_share(fit, lambda: [batch])
    assert all(torch.equal(weight, before[name]) for name, weight in fit.addon.state_dict().items())


def test_a_fit_without_restoration_decides_alike_and_goes_on(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    fit.step(batch)
    fit.end_epoch()
    none = fit.without_restoration()
    assert none.addon.shape.restoration_rank == 0
    assert (none.num_steps, none.num_epochs) == (1, 1)
    assert none.validate([batch]).loss == fit.validate([batch], scaled(fit.addon, 0.0)).loss
    rates = [group["lr"] for group in none.optimizer.param_groups]
    assert rates == [group["lr"] for group in fit.optimizer.param_groups]
    before = none.addon.decisions[0].state_dict()["enter.weight"].clone()
    none.step(batch)
    assert not torch.equal(none.addon.decisions[0].state_dict()["enter.weight"], before)


def test_without_any_restoration_there_is_nothing_to_judge(clip_vit: Vit) -> None:
    assert best_share(Fit(clip_vit, LOSS, FitConfig(restoration_rank=0)), lambda: []) == 0
