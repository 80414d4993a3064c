"""The plain training loop: what moves, what does not, and what stops it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch

from reuse_models.addon import load_addon, save_addon
from reuse_models.frame_order import PUBLISHED_PATTERN
from reuse_models.gate import HardGate
from reuse_models.loss import LossConfig, Teacher
from reuse_models.masked import Clips, masked_forward
from reuse_models.rules import Rules
from reuse_models.token_memory import SEMANTICS, Semantics
from reuse_models.training import Batch, Fit, FitConfig, NotFiniteError
from reuse_models.vit import Vit
from reuse_models.warm_up import WarmUpConfig, gather_pairs, warm_up

LOSS = LossConfig(target_rate=0.8, second_last_weight=0.0)


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


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_beside_a_tower_of_sixteen_bits_float32_weights_are_trained_the_same_way(
    clip_vit: Vit, batch: Batch, semantics: Semantics
) -> None:
    config = FitConfig(decision_learning_rate=2e-2, decision_hidden=16, restoration_rank=8, semantics=semantics)
    exact, half = Fit(clip_vit, LOSS, config), Fit(copy.deepcopy(clip_vit).bfloat16(), LOSS, config)
    pairs_b = gather_pairs(half.vit, [batch.pixels_CF3HW], PUBLISHED_PATTERN, WarmUpConfig())
    for fit in (exact, half):
        warm_up(fit.addon, pairs_b, 0.5, WarmUpConfig(steps=20))
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
    assert half.validate(batch).embedding_error == pytest.approx(reports[-1].embedding_error, abs=0.05)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch itself does it, tracing
def test_steps_compile_whole_and_give_the_same_weights(
    clip_vit: Vit, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced here and run as traced: what a graph is turned into is torch's own affair."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    loss = replace(LOSS, second_last_weight=0.5, residual_weight=0.5)
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
    assert fit.validate(batch) == fit.validate(batch)


def test_hidden_states_of_the_teacher_are_made_where_the_loss_wants_them(clip_vit: Vit, batch: Batch) -> None:
    without, with_hidden = (
        Fit(clip_vit, LossConfig(target_rate=0.8, second_last_weight=weight), FitConfig()).validate(batch).loss
        for weight in (0.0, 1.5)
    )
    assert with_hidden > without


def test_what_layers_add_costs_nothing_where_nothing_is_reused(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LossConfig(target_rate=0.0, second_last_weight=0.0, residual_weight=1.0), FitConfig())
    with torch.no_grad():
        never, _ = fit.forward(batch, HardGate(fit.addon.decisions, bias=-100.0))
        often, _ = fit.forward(batch, HardGate(fit.addon.decisions, bias=100.0))
        least = _least_cosine(clip_vit, fit, batch)
    assert never.residual_error is not None
    assert often.residual_error is not None
    assert float(never.residual_error) == pytest.approx(0.0, abs=1e-5)
    assert float(often.residual_error) > 0.01
    assert float(often.total) == pytest.approx(float(often.residual_error + 1 - least), abs=1e-5)


def _least_cosine(vit: Vit, fit: Fit, batch: Batch) -> torch.Tensor:
    """Mean over clips of the least cosine of the last three frames, everything reused."""
    scores = fit.addon.codec_net(batch.codec_CF4TPP.flatten(0, 1)).unflatten(0, (4, 6))
    clips = Clips(batch.pixels_CF3HW, scores, PUBLISHED_PATTERN)
    output = masked_forward(vit, Rules(fit.addon, HardGate(fit.addon.decisions, bias=100.0)), clips)
    cosine_CF = torch.cosine_similarity(output.embeddings_CFE, batch.teacher.embeddings_CFE, dim=-1)
    return cosine_CF[:, 3:].min(dim=1).values.mean()


def test_the_inputs_of_layers_are_the_towers_where_nothing_is_reused(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LOSS, FitConfig())
    scores = fit.addon.codec_net(batch.codec_CF4TPP.flatten(0, 1)).unflatten(0, (4, 6))
    rules = Rules(fit.addon, HardGate(fit.addon.decisions, bias=-100.0))
    output = masked_forward(clip_vit, rules, Clips(batch.pixels_CF3HW, scores, PUBLISHED_PATTERN), ("inputs",))
    assert output.inputs_CFLND is not None
    h_XND = clip_vit.embed(batch.pixels_CF3HW.flatten(0, 1))
    for layer in range(clip_vit.shape.num_layers):
        torch.testing.assert_close(output.inputs_CFLND[:, :, layer].flatten(0, 1), h_XND, atol=1e-4, rtol=1e-4)
        h_XND = clip_vit.run_layer(layer, h_XND)


def test_an_addon_without_codec_net_and_restoration_trains_its_decisions_alone(clip_vit: Vit, batch: Batch) -> None:
    fit = Fit(clip_vit, LOSS, FitConfig(codec=False, restoration_rank=0, decision_hidden=8, order="sequential"))
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
    explained = warm_up(fit.addon, pairs_b, 0.8, config)
    assert len(pairs_b) == clip_vit.shape.num_layers - 1
    assert min(explained) > 0.04  # 0: nothing restored
    assert fit.step(batch).rate == pytest.approx(0.75, abs=0.12)


def test_warm_up_pairs_hold_what_the_reference_lacks(clip_vit: Vit) -> None:
    still = torch.randn(1, 1, 3, 32, 32).expand(1, 6, 3, 32, 32)
    pairs = gather_pairs(clip_vit, [still], PUBLISHED_PATTERN, WarmUpConfig())[0]
    assert pairs.missing_X4D.abs().max() < 1e-5
    assert pairs.similarity_X.min() > 1 - 1e-5
