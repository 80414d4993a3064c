"""The attention that keeps its scores in cache against the ordinary one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from reuse_models.reusevit.engines.workspace import CachedAttention
from reuse_models.tower import attention
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

SHAPE = VitShape(
    image_px=112, patch_px=8, width=64, num_heads=8, num_layers=2, mlp_width=64, embed_dim=16, has_cls=True
)


@pytest.mark.parametrize("scale", [1.0, 3.0, 60.0])
def test_it_equals_the_ordinary_attention(scale: float) -> None:
    """At the last scale sums of the second frame leave the range of float32, and the ordinary one takes over."""
    vit = Vit.random(SHAPE, seed=0)
    cached = CachedAttention(vit)
    assert cached.is_used
    generator = torch.Generator().manual_seed(0)
    projected_KNC = torch.randn(2, SHAPE.num_tokens, 3 * 64 + 16, generator=generator)[..., : 3 * 64]
    projected_KNC[1] *= scale
    pre_proj_KND = torch.empty(2, SHAPE.num_tokens, 64)
    importance_KN = torch.empty(2, SHAPE.num_tokens)
    pairs = cached(projected_KNC, pre_proj_KND, importance_KN)
    if scale == 60.0:
        assert isinstance(pairs, Tensor)
        # Those given up, and what CLS, the only query of the last layer, gives to all.
        assert pairs.tolist() == [0, SHAPE.num_tokens**2 + SHAPE.num_tokens]
    else:
        assert pairs == 0
    q_KhNd, k_KhNd, v_KhNd = vit.split_heads(projected_KNC)
    torch.testing.assert_close(pre_proj_KND, vit.attend(q_KhNd, k_KhNd, v_KhNd), rtol=1e-4, atol=scale * 1e-5)
    torch.testing.assert_close(importance_KN, vit.importance(q_KhNd, k_KhNd), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score_bytes", [2**20, 3 * SHAPE.num_tokens**2 * 2])
@pytest.mark.parametrize("has_cls", [True, False])
def test_in_16_bits_importance_is_read_off_the_products(
    monkeypatch: pytest.MonkeyPatch, score_bytes: int, *, has_cls: bool
) -> None:
    monkeypatch.setattr(attention, "SCORE_BYTES", score_bytes)
    shape = dataclasses.replace(SHAPE, has_cls=has_cls)
    vit = Vit.random(shape, seed=0).bfloat16()
    projected_KNC = torch.randn(5, shape.num_tokens, 3 * 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(attention, "PRODUCTS_ARE_FASTER", False)
    ordinary, received = _attended(vit, projected_KNC, took_product=True)
    monkeypatch.setattr(attention, "PRODUCTS_ARE_FASTER", True)
    by_products, read_off = _attended(vit, projected_KNC, took_product=False)
    torch.testing.assert_close(by_products, ordinary, rtol=0.02, atol=0.02)
    torch.testing.assert_close(read_off, received, rtol=0.02, atol=1e-3)


def _attended(vit: Vit, projected_KNC: Tensor, *, took_product: bool) -> tuple[Tensor, Tensor]:
    pre_proj_KND = projected_KNC.new_empty(*projected_KNC.shape[:2], vit.shape.width)
    importance_KN = projected_KNC.new_empty(projected_KNC.shape[:2])
    with torch.inference_mode():
        pairs = CachedAttention(vit)(projected_KNC, pre_proj_KND, importance_KN)
    assert pairs == (vit.shape.num_tokens * vit.shape.num_last_queries if took_product else 0)
    return pre_proj_KND, importance_KN


def test_small_towers_keep_the_ordinary_one(clip_vit: Vit) -> None:
    assert not CachedAttention(clip_vit).is_used
