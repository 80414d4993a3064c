"""The plain training loop: what moves, what does not, and what stops it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch

from reuse_models.reusevit.addon import load_addon, save_addon
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.reusevit.gate import HardGate
from reuse_models.tower.vit import Vit
from reuse_models.training.fit import RATE_BAND, Batch, Fit, FitConfig, NotFiniteError, Validated
from reuse_models.training.loss import LossConfig, Teacher
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs, warm_up

LOSS = LossConfig(target_rate=0.8)


@pytest.fixture
def batch(clip_vit: Vit) -> Batch:
    """Four clips whose patches mostly stand still."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(4, 1, 3, 32, 32, generator=generator)
    changed = torch.rand(4, 6, 1, 4, 4, generator=generator).pow(4).repeat_interleave(8, 3).repeat_interleave(8, 4)
    pixels = first + changed * torch.randn(4, 6, 3, 32, 32, generator=generator)
    codec = torch.rand(4, 6, 4, 4, 4, 4, generator=generator)
    return Batch(pixels, codec, Teacher(clip_vit(pixels.flatten(0, 1)).unflatten(0, (4, 6))))


@pytest.mark.parametrize("gate", ["straight", "gumbel"])
def test_training_moves_the_rate_to_its_target_and_leaves_the_tower_alone(
    clip_vit: Vit, batch: Batch, gate: Literal["straight", "gumbel"]
) -> None:
    before = {name: weight.clone() for name, weight in clip_vit.state_dict().items()}
    fit = Fit(clip_vit, LOSS, FitConfig(decision_learning_rate=2e-2, decision_hidden=16, gate=gate))
    reports = [fit.step(batch) for _ in range(30)]
    if gate == "gumbel":
        assert reports[0].rate == pytest.approx(0.5, abs=0.1)  # a coin at first
    assert reports[-1].rate > 0.75
    assert reports[-1].loss < reports[0].loss
    assert all(torch.equal(weight, before[name]) for name, weight in clip_vit.state_dict().items())
    assert all(weight.grad is None for weight in clip_vit.parameters())
    assert all(weight.grad is not None for weight in fit.addon.parameters())


def test_beside_a_tower_of_sixteen_bits_float32_weights_are_trained_the_same_way(clip_vit: Vit, batch: Batch) -> None:
    config = FitConfig(decision_learning_rate=2e-2, decision_hidden=16, restoration_rank=8)
    exact, half = Fit(clip_vit, LOSS, config), Fit(copy.deepcopy(clip_vit).bfloat16(), LOSS, config)
    pairs_b = list(gather_pairs(half.vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, WarmUpConfig()))
    for fit in (exact, half):
        warm_up({0.5: fit.addon}, pairs_b, WarmUpConfig(steps=20))
        fit.step(batch)
    assert {weight.dtype for weight in half.addon.parameters()} == {torch.float32}
    ours, theirs = (
        torch.cat([weight.grad.flatten() for weight in fit.addon.restorations.parameters() if weight.grad is not None])
        for fit in (half, exact)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9
    reports = [half.step(batch) for _ in range(30)]
    assert reports[-1].rate > 0.75
    assert reports[-1].loss < reports[0].loss
    assert half.validate([batch]).embedding_error == pytest.approx(reports[-1].embedding_error, abs=0.05)


@pytest.fixture
def exact_vit(clip_vit: Vit) -> Vit:
    """The tower in float64: sums in another order differ by nothing that counts."""
    return copy.deepcopy(clip_vit).double()


@pytest.fixture
def eight(exact_vit: Vit) -> Batch:
    """Eight clips, of which some stand almost still and some do not: their rates differ."""
    generator = torch.Generator().manual_seed(6)
    first = torch.randn(8, 1, 3, 32, 32, generator=generator)
    power_C = torch.linspace(1, 12, 8).view(8, 1, 1, 1, 1)
    changed = torch.rand(8, 6, 1, 4, 4, generator=generator).pow(power_C)
    changed = changed.repeat_interleave(8, 3).repeat_interleave(8, 4)
    pixels = (first + changed * torch.randn(8, 6, 3, 32, 32, generator=generator)).double()
    codec = torch.rand(8, 6, 4, 4, 4, 4, generator=generator).double()
    return Batch(pixels, codec, Teacher(exact_vit(pixels.flatten(0, 1)).unflatten(0, (8, 6))))


def _fit_after_a_start(vit: Vit, batch: Batch, loss: LossConfig, clips_at_once: int | None) -> Fit:
    """A fit whose clips reuse differently, without dropout; the same whatever is run at once."""
    fit = Fit(vit, loss, FitConfig(restoration_rank=8), clips_at_once=clips_at_once)
    fit.addon.double()
    for module in fit.addon.codec_net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    pairs_b = gather_pairs(vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, WarmUpConfig())
    warm_up({0.6: fit.addon}, pairs_b, WarmUpConfig(steps=20))
    return fit


@pytest.mark.parametrize("clips_at_once", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("offset", [-0.02, 0.02])
def test_a_step_in_parts_has_the_gradient_of_the_whole_on_either_side_of_the_target(
    exact_vit: Vit, eight: Batch, offset: float, clips_at_once: int
) -> None:
    start = _fit_after_a_start(exact_vit, eight, LOSS, None)
    rates = [start._rate(0, one).item() for one in eight.parts(1)]
    mean = float(start._rate(0, eight))
    assert min(rates) < mean - 0.03  # some parts lie on the other side than the whole
    assert max(rates) > mean + 0.03
    loss = replace(LOSS, target_rate=mean + offset, second_last_weight=0.7)
    whole, parted = (_fit_after_a_start(exact_vit, eight, loss, count) for count in (None, clips_at_once))
    reports = [fit.step(eight) for fit in (whole, parted)]
    for (name, ours), theirs in zip(parted.addon.named_parameters(), whole.addon.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-5, atol=1e-5 * scale, msg=lambda found, name=name: f"{name}: {found}"
        )
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-5)
    assert reports[1].rate == pytest.approx(reports[0].rate, rel=1e-6)
    assert reports[1].rate_per_boundary == pytest.approx(reports[0].rate_per_boundary, rel=1e-5)


def test_the_mean_of_the_parts_losses_would_have_another_gradient(exact_vit: Vit, eight: Batch) -> None:
    """Why the rate is asked first: the relu of each part's own rate pulls where the whole is past its target."""
    start = _fit_after_a_start(exact_vit, eight, LOSS, None)
    loss = replace(LOSS, target_rate=float(start._rate(0, eight)) - 0.02)
    fit = _fit_after_a_start(exact_vit, eight, loss, None)
    with torch.no_grad():
        terms = [float(fit.forward(part, fit._gate(0))[0].total) for part in eight.parts(1)]
        whole = float(fit.forward(eight, fit._gate(0))[0].total)
    assert sum(terms) / len(terms) > whole + 1e-3


def test_noise_is_drawn_anew_for_each_part_and_the_same_whenever_it_is_run(clip_vit: Vit, batch: Batch) -> None:
    still = Batch(
        batch.pixels_CF3HW[:1].repeat(2, 1, 1, 1, 1),
        batch.codec_CF4TPP[:1].repeat(2, 1, 1, 1, 1, 1),
        Teacher(batch.teacher.embeddings_CFE[:1].repeat(2, 1, 1)),
    )
    fit = Fit(clip_vit, LOSS, FitConfig(gate="gumbel", dropout=0.25))
    fit.addon.train()
    one, other = still.parts(1)
    assert torch.equal(fit._rate(0, one), fit._rate(0, one))
    assert not torch.equal(fit._rate(0, one), fit._rate(1, other))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_validation_in_parts_gives_the_numbers_of_the_whole(exact_vit: Vit, eight: Batch, size: int) -> None:
    loss = replace(LOSS, target_rate=0.5, second_last_weight=0.7)
    fit = _fit_after_a_start(exact_vit, eight, loss, None)
    whole, parted = fit.validate([eight]), fit.validate(eight.parts(size))
    for name in ("loss", "rate", "embedding_error", "rate_per_boundary"):
        assert getattr(parted, name) == pytest.approx(getattr(whole, name), rel=1e-5, abs=1e-7), name


def test_validation_on_three_workers_gives_the_numbers_of_the_whole(exact_vit: Vit, eight: Batch) -> None:
    """One has all clips but one part, one has that, and one has none."""
    fits = [_fit_after_a_start(exact_vit, eight, replace(LOSS, target_rate=0.5), None) for _ in range(3)]
    whole = fits[0].validate([eight])
    parts = eight.parts(3)
    barrier = threading.Barrier(len(fits))
    given: list[list[Validated]] = [[] for _ in fits]

    def gather(rank: int, own: list[Validated]) -> list[Validated]:
        given[rank] = own
        barrier.wait(60)
        return [one for of_worker in given for one in of_worker]

    for rank, fit in enumerate(fits):
        fit.gather = partial(gather, rank)
    with ThreadPoolExecutor(len(fits)) as pool:
        reports = list(pool.map(Fit.validate, fits, [parts[:-1], parts[-1:], []]))
    assert [len(own) for own in given] == [len(parts) - 1, 1, 0]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].loss == pytest.approx(whole.loss, rel=1e-5)
    assert reports[0].rate == pytest.approx(whole.rate, rel=1e-5)
    assert fits[0].without_restoration().gather == fits[0].gather


def test_parts_are_as_equal_as_they_can_be_and_leave_nothing_out(batch: Batch) -> None:
    assert [part.num_clips for part in batch.parts(3)] == [2, 2]
    assert [part.num_clips for part in batch.parts(None)] == [4]
    joined = torch.cat([part.teacher.embeddings_CFE for part in batch.parts(1)])
    assert torch.equal(joined, batch.teacher.embeddings_CFE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch itself does it, tracing
def test_steps_compile_whole_and_give_the_same_weights(
    clip_vit: Vit, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced here and run as traced: what a graph is turned into is torch's own affair."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    loss = replace(LOSS, second_last_weight=0.5)
    config = FitConfig(restoration_rank=8)
    plain, compiled = (Fit(clip_vit, loss, config, compiled=compiled) for compiled in (False, True))
    for _ in range(2):
        assert compiled.step(batch).loss == pytest.approx(plain.step(batch).loss, rel=1e-5)
    for ours, theirs in zip(compiled.addon.parameters(), plain.addon.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_loss_that_is_no_number_stops_and_changes_nothing(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LOSS, FitConfig())
    before = {name: weight.clone() for name, weight in fit.addon.state_dict().items()}
    broken = Batch(
        batch.pixels_CF3HW, batch.codec_CF4TPP, Teacher(torch.full_like(batch.teacher.embeddings_CFE, torch.nan))
    )
    with pytest.raises(NotFiniteError, match="lower the learning rates"):
        fit.step(broken)
    assert all(torch.equal(weight, before[name]) for name, weight in fit.addon.state_dict().items())


def test_the_same_seed_gives_the_same_weights(clip_vit: Vit, batch: Batch) -> None:
    fits = [Fit(clip_vit, LOSS, FitConfig(seed=4)) for _ in range(2)]
    for fit in fits:
        torch.manual_seed(id(fit) % 1000)  # the global generator plays no part
        for _ in range(2):
            fit.step(batch)
    first, second = (fit.addon.state_dict() for fit in fits)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_fit_goes_on_from_its_files_as_if_nothing_had_happened(clip_vit: Vit, batch: Batch, tmp_path: Path) -> None:
    config = FitConfig(gate="gumbel", dropout=0.25)
    whole, first = (Fit(clip_vit, LOSS, config) for _ in range(2))
    for fit in (whole, first):
        fit.step(batch)
        fit.end_epoch()
    save_addon(first.addon, tmp_path / "addon.safetensors")
    first.save_optimizer(tmp_path / "addon.optimizer.safetensors")
    resumed = Fit(clip_vit, LOSS, config)
    resumed.addon.load_state_dict(load_addon(tmp_path / "addon.safetensors").state_dict())
    resumed.load_optimizer(tmp_path / "addon.optimizer.safetensors")
    for fit in (whole, resumed):
        fit.step(batch)
    for name, weight in whole.addon.state_dict().items():
        torch.testing.assert_close(resumed.addon.state_dict()[name], weight, rtol=0, atol=1e-7)


def test_validation_is_hard_and_free_of_noise(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LOSS, FitConfig(gate="gumbel"))
    assert fit.validate([batch]) == fit.validate([batch])


def test_hidden_states_of_the_teacher_are_made_where_the_loss_wants_them(clip_vit: Vit, batch: Batch) -> None:
    without, with_hidden = (
        Fit(clip_vit, LossConfig(target_rate=0.8, second_last_weight=weight), FitConfig()).validate([batch]).loss
        for weight in (0.0, 1.5)
    )
    assert with_hidden > without


def test_an_addon_without_codec_net_and_restoration_trains_its_decisions_alone(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LOSS, FitConfig(codec=False, restoration_rank=0, decision_hidden=8))
    trained = {name for name, weight in fit.addon.named_parameters() if weight.numel()}
    assert {name.split(".")[0] for name in trained} == {"decisions"}
    other = replace(batch, codec_CF4TPP=batch.codec_CF4TPP + 1)
    loss, _ = fit.forward(batch, HardGate(fit.addon.decisions))
    assert torch.equal(loss.total, fit.forward(other, HardGate(fit.addon.decisions))[0].total)
    assert fit.step(batch).rate >= 0


def test_warm_up_starts_at_the_target_rate_and_restores_better_than_nothing(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LOSS, FitConfig(decision_hidden=32, restoration_rank=8))
    config = WarmUpConfig(steps=60)
    pairs_b = gather_pairs(clip_vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, config)
    explained = warm_up({0.8: fit.addon}, pairs_b, config)[0.8]
    assert len(explained) == clip_vit.shape.num_layers - 1
    assert min(explained) > 0.04  # 0: nothing restored
    assert fit.step(batch).rate == pytest.approx(0.75, abs=0.12)


def test_warm_up_pairs_hold_what_the_reference_lacks(clip_vit: Vit) -> None:
    still = torch.randn(1, 1, 3, 32, 32).expand(1, 6, 3, 32, 32)
    pairs = next(gather_pairs(clip_vit, [still], PUBLISHED_PATTERN, WarmUpConfig()))
    assert pairs.missing_X4D.abs().max() < 1e-5
    assert pairs.similarity_X.min() > 1 - 1e-5


def test_warm_up_samples_as_if_all_pairs_of_all_clips_had_been_kept(clip_vit: Vit, batch: Batch) -> None:
    """The oracle keeps every pair of every boundary, as a tower of any width cannot."""
    parts = [part.pixels_CF3HW for part in batch.parts(2)]
    config = WarmUpConfig(num_pairs=50)
    sampled_b = list(gather_pairs(clip_vit, parts, PUBLISHED_PATTERN, config))
    every = [list(gather_pairs(clip_vit, [one], PUBLISHED_PATTERN, WarmUpConfig())) for one in parts]
    for boundary, sampled in enumerate(sampled_b):
        for name in ("difference_XD", "missing_X4D", "importance_X", "similarity_X"):
            joined = torch.cat([getattr(of_part[boundary], name) for of_part in every])
            expected = joined[torch.linspace(0, len(joined) - 1, 50).long()]
            assert torch.equal(getattr(sampled, name), expected), name


def test_warm_up_keeps_one_boundary_of_its_sample_and_one_layer_of_its_clips(
    clip_vit: Vit, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def clips() -> Iterator[torch.Tensor]:
        nonlocal drawn
        while True:
            drawn += 1
            yield torch.randn(1, 6, 3, 32, 32)

    num_tokens, width = clip_vit.shape.num_tokens, clip_vit.shape.width
    monkeypatch.setattr("reuse_models.training.warm_up.HELD_BYTES", 3 * 6 * num_tokens * width * 4)
    found = gather_pairs(clip_vit, clips(), PUBLISHED_PATTERN, WarmUpConfig(num_pairs=7))
    assert len(next(found).similarity_X) == 7
    assert drawn == 3  # of 96


def test_warm_up_refuses_too_few_boundaries(clip_vit: Vit, batch: Batch) -> None:
    config = WarmUpConfig(num_pairs=50, steps=1)
    pairs_b = list(gather_pairs(clip_vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, config))
    with pytest.raises(ValueError, match=f"got pairs of {len(pairs_b) - 1} boundaries, expected {len(pairs_b)}"):
        warm_up({0.8: Fit(clip_vit, LOSS, FitConfig()).addon}, pairs_b[1:], config)


HELD = FitConfig(restoration_rank=0, decision_hidden=16, decision_learning_rate=2e-2, rate="held")


@pytest.mark.parametrize("target", [0.3, 0.7])
def test_a_rate_that_is_held_comes_to_its_target_from_either_side(clip_vit: Vit, batch: Batch, target: float) -> None:
    loss = LossConfig(target_rate=target, rate_weight=2.0)
    start = WarmUpConfig()
    held, pushed = (Fit(clip_vit, loss, replace(HELD, rate=rate)) for rate in ("held", "at_least"))
    for fit in (held, pushed):
        warm_up({0.5: fit.addon}, gather_pairs(clip_vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, start), start)
    pushed.step(batch)
    rates = [held.step(batch).rate for _ in range(80)]
    assert sum(rates[-20:]) / 20 == pytest.approx(target, abs=0.12)
    assert held.mean_rate is not None
    assert pushed.mean_rate is None


def test_the_held_mean_goes_over_the_windows_of_a_published_step(clip_vit: Vit) -> None:
    fit = Fit(clip_vit, LossConfig(target_rate=0.5, rate_weight=0.35), HELD)
    assert fit._slope(0.9, 4) == 0.35
    assert fit.mean_rate == 0.9  # the first one is all that is known
    assert fit._slope(0.1, 4) == 0.35
    assert fit.mean_rate == pytest.approx(0.9 - 0.8 / 4)
    assert fit._slope(0.1, 32) == -0.35
    assert fit.mean_rate == pytest.approx(0.1)  # no longer than a step
    assert fit._slope(0.51, 32) == pytest.approx(0.35 * 0.01 / RATE_BAND)  # softer where it is nearly there


def test_the_held_mean_goes_on_in_a_fit_that_is_resumed(clip_vit: Vit, batch: Batch, tmp_path: Path) -> None:
    fit, other = (Fit(clip_vit, LOSS, HELD) for _ in range(2))
    fit.step(batch)
    fit.save_optimizer(tmp_path / "optimizer.safetensors")
    other.load_optimizer(tmp_path / "optimizer.safetensors")
    assert other.mean_rate == fit.mean_rate is not None
    assert fit.without_restoration().mean_rate == fit.mean_rate
