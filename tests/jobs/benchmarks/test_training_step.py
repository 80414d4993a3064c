"""A training step against the method in plain operations, which autograd alone differentiates."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch

from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.training.fit import FitConfig
from reuse_models.training.loss import LossConfig, Teacher

JOBS = Path(__file__).resolve().parents[3] / "jobs"
TINY = VitShape(image_px=32, patch_px=8, width=48, num_heads=3, num_layers=4, mlp_width=96, embed_dim=24, has_cls=True)
Gates = Literal["straight", "gumbel"]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(JOBS))
    spec = importlib.util.spec_from_file_location("training_step_job", JOBS / "benchmarks" / "training_step.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training_step_job", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "KNOWN_SHAPES", {"tiny": TINY})
    return module


@pytest.mark.parametrize("rank", [6, 0])
@pytest.mark.parametrize("gate", ["straight", "gumbel"])
def test_gradients_equal_those_of_plain_operations(step: ModuleType, gate: Gates, rank: int) -> None:
    config = FitConfig(gate=gate, restoration_rank=rank, dropout=0.0)
    loss = LossConfig(target_rate=0.99, second_last_weight=1.5)
    batch = step.make_batch(TINY, 3)
    vit = Vit.random(TINY, seed=5).double()
    batch = replace(batch, pixels_CF3HW=batch.pixels_CF3HW.double(), codec_CF4TPP=batch.codec_CF4TPP.double())
    batch = replace(batch, teacher=Teacher(vit(batch.pixels_CF3HW.flatten(0, 1)).unflatten(0, (3, 6))))
    fits = [kind(vit, loss, config) for kind in (step.Fit, step.PlainFit)]
    ours, plain = (fit.addon.double() for fit in fits)
    torch.manual_seed(0)
    for weight in ours.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.1)
    plain.load_state_dict(ours.state_dict())
    losses = []
    for fit in fits:
        found, rates_b = fit.forward(batch, fit._gate(7))
        found.total.backward()
        losses.append((found.total.detach(), found.rate.detach(), rates_b))
    assert 0.05 < float(losses[0][1]) < 0.95  # both reused and computed patches
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other.to(one), rtol=1e-6, atol=1e-9)
    for (name, weight), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if expected.grad is None:
            assert weight.grad is None, name
            continue
        assert weight.grad is not None, name
        scale = float(expected.grad.abs().max()) if expected.grad.numel() else 0.0
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-5, atol=1e-6 * scale, msg=name)


def test_less_is_kept_for_the_backward_pass(step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wide enough that the codec net, the same on both sides, does not count.
    monkeypatch.setattr(step, "KNOWN_SHAPES", {"tiny": replace(TINY, width=384, mlp_width=1536, num_layers=6)})
    options = step.Options(backbone="tiny")
    kept = {side: _kept_bytes(step, options, side) for side in ("ours", "plain")}
    assert kept["ours"] < 0.6 * kept["plain"]


def _kept_bytes(step: ModuleType, options: object, side: str) -> int:
    """Sum the distinct memory that autograd holds after a forward pass, weights left out."""
    fit = step.make_fit(options, side)
    fit.addon.train()
    weights = {weight.untyped_storage().data_ptr() for one in (fit.vit, fit.addon) for weight in one.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss, _ = fit.forward(step.make_batch(TINY, options.clips), fit._gate(0))
    assert loss.total.requires_grad
    return sum(kept.values())
