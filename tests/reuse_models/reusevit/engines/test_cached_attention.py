"""The attention that keeps its scores in cache against the ordinary one."""

from __future__ import annotations

import pytest
import torch

from reuse_models.reusevit.engines.cached_attention import CachedAttention
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

SHAPE = VitShape(
    image_px=112, patch_px=8, width=64, num_heads=8, num_layers=2, mlp_width=64, embed_dim=16, has_cls=True
)


@pytest.mark.parametrize("scale", [1.0, 3.0, 60.0])
def test_it_equals_the_ordinary_attention(scale: float) -> None:
    """At the last scale sums leave the range of float32, and the ordinary one takes over."""
    vit = Vit.random(SHAPE, seed=0)
    attention = CachedAttention(vit)
    assert attention.is_used
    generator = torch.Generator().manual_seed(0)
    projected_KNC = scale * torch.randn(2, SHAPE.num_tokens, 3 * 64 + 16, generator=generator)[..., : 3 * 64]
    pre_proj_KND = torch.empty(2, SHAPE.num_tokens, 64)
    importance_KN = torch.empty(2, SHAPE.num_tokens)
    took_over = attention(projected_KNC, pre_proj_KND, importance_KN)
    assert took_over == (scale == 60.0)
    q_KhNd, k_KhNd, v_KhNd = vit.split_heads(projected_KNC)
    torch.testing.assert_close(pre_proj_KND, vit.attend(q_KhNd, k_KhNd, v_KhNd), rtol=1e-4, atol=scale * 1e-5)
    torch.testing.assert_close(importance_KN, vit.importance(q_KhNd, k_KhNd), rtol=1e-4, atol=1e-5)


def test_small_towers_keep_the_ordinary_one(clip_vit: Vit) -> None:
    assert not CachedAttention(clip_vit).is_used
