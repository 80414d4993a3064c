"""Restoration is taken as far as held-out clips say, and not at all where it does harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit
from reuse_models.training import held_out
from reuse_models.training.fit import Batch, Fit, FitConfig, Report
from reuse_models.training.held_out import LOWER_BIAS, begin, best_share, pays, price, scaled, shift, target_bias
from reuse_models.training.loss import LossConfig, Teacher
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs, warm_up

LOSS = LossConfig(target_rate=0.8)
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


def test_a_fit_begins_with_what_helps_and_keeps_it_if_it_helps_more_than_its_flops_elsewhere(
    clip_vit: Vit, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    losses = {share: fit.validate([batch], scaled(fit.addon, share)).loss for share in (1.0, 0.5, 0.25)}
    assert min(losses.values()) < fit.validate([batch], fit.addon.without_restoration()).loss
    best = min(losses, key=lambda share: losses[share])
    assert best_share(fit, lambda: [batch]) == best
    assert price(clip_vit.shape, CONFIG.restoration_rank or 0) > 0.25  # of a tower as narrow as this
    addon = scaled(fit.addon, best)
    assert not pays(fit.validate([batch], addon), fit, addon, lambda: [batch])
    monkeypatch.setattr(held_out, "price", lambda _shape, _rank: 0.0)
    assert pays(fit.validate([batch], addon), fit, addon, lambda: [batch])


def test_what_is_corrected_costs_a_share_of_what_is_saved() -> None:
    """Four MLPs of two products, beside q, k, v, projection and an MLP of four times the width."""
    shape = KNOWN_SHAPES["facebook/dinov2-small"]
    assert price(shape, 32) == pytest.approx(8 * 32 * 384 / (12 * 384**2))
    assert price(shape, 0) == 0


@pytest.mark.parametrize(
    ("error", "rate", "expected"),
    [
        (0.019, 0.8, True),  # better than none at this very rate
        (0.021, 0.8, False),
        (0.0199, 0.8, False),  # but not than 0.0197 where as much more is computed
        (0.009, 0.7, True),
        (0.011, 0.7, False),
    ],
)
def test_it_is_compared_where_it_costs_as_much(
    clip_vit: Vit, monkeypatch: pytest.MonkeyPatch, error: float, rate: float, expected: bool
) -> None:
    """None errs by 0.02 at a rate of 0.8 and by 0.01 at 0.7."""
    fit = Fit(clip_vit, LOSS, CONFIG)
    none = {0.0: Report(0.0, 0.8, 0.02, ()), LOWER_BIAS: Report(0.0, 0.7, 0.01, ())}
    monkeypatch.setattr(fit, "validate", lambda _batches, _addon, bias: none[bias])
    monkeypatch.setattr(held_out, "price", lambda _shape, _rank: 0.0025)
    assert pays(Report(0.0, rate, error, ()), fit, fit.addon, lambda: []) == expected


def test_what_harms_is_left_out(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    worse = scaled(fit.addon, -1.0)  # away from where it ought to go
    fit.addon.load_state_dict(worse.state_dict())
    assert best_share(fit, lambda: [batch]) == 0
    assert not pays(fit.validate([batch]), fit, fit.addon, lambda: [batch])


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
    assert [one.dropout.p for one in none.addon.decisions] == [fit.config.dropout] * 2
    assert (none.num_steps, none.num_epochs) == (1, 1)
    assert none.validate([batch]).loss == fit.validate([batch], scaled(fit.addon, 0.0)).loss
    rates = [group["lr"] for group in none.optimizer.param_groups]
    assert rates == [group["lr"] for group in fit.optimizer.param_groups]
    before = none.addon.decisions[0].state_dict()["enter.weight"].clone()
    none.step(batch)
    assert not torch.equal(none.addon.decisions[0].state_dict()["enter.weight"], before)


def test_without_any_restoration_there_is_nothing_to_judge(clip_vit: Vit) -> None:
    assert best_share(Fit(clip_vit, LOSS, FitConfig(restoration_rank=0)), lambda: []) == 0


def test_a_start_is_shifted_to_its_target(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    before = fit.validate([batch]).rate
    other = Fit(clip_vit, replace(LOSS, target_rate=before - 0.1), CONFIG)
    other.addon.load_state_dict(fit.addon.state_dict())
    bias = target_bias(other, lambda: [batch])
    assert bias < 0
    shift(other.addon, bias)
    assert abs(other.validate([batch]).rate - (before - 0.1)) < 0.05


@pytest.mark.parametrize(("rate", "target"), [("held", True), ("at_least", False)])
def test_a_fit_begins_at_its_target_where_it_holds_its_rate(
    clip_vit: Vit, rate: Literal["held", "at_least"], target: bool
) -> None:
    batch = clips(clip_vit, 0)
    start = started(clip_vit, batch)
    wanted = start.validate([batch]).rate - 0.1
    fit = Fit(clip_vit, replace(LOSS, target_rate=wanted), replace(CONFIG, rate=rate))
    fit.addon.load_state_dict(start.addon.state_dict())
    expected = best_share(fit, lambda: [batch])
    begun, share = begin(fit, lambda: [batch])
    assert share == expected
    assert (abs(begun.validate([batch]).rate - wanted) < 0.05) == target


def test_workers_without_held_out_clips_begin_as_the_first_one_says(clip_vit: Vit) -> None:
    batch = clips(clip_vit, 0)
    fit = started(clip_vit, batch)
    before = fit.addon.decisions[0].state_dict()["leave.bias"][0].clone()
    expected = scaled(fit.addon, 0.25)
    fit.config = replace(CONFIG, rate="held")
    said = iter([0.25, -0.5])
    begun, share = begin(fit, None, lambda _: next(said))
    assert share == 0.25
    shift(expected, -0.5)
    assert begun.addon.decisions[0].state_dict()["leave.bias"][0] == before - 0.5
    for name, weight in begun.addon.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])
    fit = started(clip_vit, batch)
    assert begin(fit, None, lambda _: 0.0)[0].addon.shape.restoration_rank == 0
