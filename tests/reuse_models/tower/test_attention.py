"""Attention by plain products against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.tower import attention

HEADS, HEAD_DIM, TOKENS = 6, 64, 150


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any processor for one where products are faster."""
    monkeypatch.setattr(attention, "PRODUCTS_ARE_FASTER", True)


def _qkv(num_frames: int, num_queries: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v in bfloat16 as a tower has them: views of one tensor."""
    generator = torch.Generator().manual_seed(0)
    qkv_BNC = torch.randn(num_frames, TOKENS, 3 * HEADS * HEAD_DIM, generator=generator).bfloat16()
    q, k, v = (one.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2) for one in qkv_BNC.chunk(3, dim=2))
    return q[:, :, :num_queries], k, v


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("num_queries", [TOKENS, 40, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_near_to_float32(num_queries: int, *, with_bias: bool) -> None:
    q, k, v = _qkv(num_frames=9, num_queries=num_queries)
    bias_BN = torch.rand(9, TOKENS).bfloat16() if with_bias else None
    assert 9 * HEADS * num_queries * TOKENS * 2 > attention.SCORE_BYTES or num_queries < TOKENS
    mask = None if bias_BN is None else bias_BN[:, None, None]
    with torch.no_grad():
        got = attention.attend(q, k, v, bias_BN)
        fused = F.scaled_dot_product_attention(q, k, v, mask)
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), None if mask is None else mask.float())
    assert got.shape == exact.shape
    assert got.dtype == torch.bfloat16
    assert float((got - exact).norm()) < 3 * float((fused - exact).norm())


@pytest.mark.usefixtures("products")
def test_what_keys_have_in_common_costs_no_digits() -> None:
    q, k, v = _qkv(num_frames=2)
    k = k + 8 * torch.randn(HEAD_DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        as_they_are = torch.softmax((q * HEAD_DIM**-0.5) @ k.mT, -1) @ v
        got = attention.attend(q, k, v)
    assert float((got - exact).norm()) < 0.5 * float((as_they_are - exact).norm())


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("score_bytes", [1, TOKENS**2 * 2 * 4, TOKENS**2 * 2 * HEADS])
def test_frames_and_heads_do_not_depend_on_which_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch, score_bytes: int
) -> None:
    q, k, v = _qkv(num_frames=5)
    with torch.no_grad():
        together = attention.attend(q, k, v)
        monkeypatch.setattr(attention, "SCORE_BYTES", score_bytes)
        # To a rounding or two: not every processor adds up a batch of products as it does one of them.
        torch.testing.assert_close(together, attention.attend(q, k, v), atol=2**-8, rtol=2**-7)


@pytest.mark.usefixtures("products")
def test_only_bfloat16_on_a_cpu_without_gradients_takes_products() -> None:
    q, _, _ = _qkv(num_frames=1)
    assert not attention.prefers_products(q)
    with torch.inference_mode():
        assert attention.prefers_products(q)
        assert not attention.prefers_products(q.float())
        assert not attention.prefers_products(q.to("meta"))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], *, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert attention.has_products_without_tiles() == expected
