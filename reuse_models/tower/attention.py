"""Attention of all heads: PyTorch's, or three plain products where those are faster.

On CPUs with products of bfloat16 but without tiles for them (AVX512-BF16 without AMX), the fused kernel of PyTorch runs
at a fifth of the speed of plain products. There a few frames or heads at a time, as many as stay in cache, go through
scores, softmax and their product with v. Scores are rounded to bfloat16 then, which the fused kernel does not do;
docs/performance.md says by how much embeddings move.

Shapes: B frames, K of them at once, h heads, M queries, N keys, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SCORE_BYTES = 2**20
"""Of what is attended to at once: about a core's own cache."""


def attend(q_BhMd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, bias_BN: Tensor | None = None) -> Tensor:
    """Return [B, h, M, d]: softmax(q kᵀ / √d + bias) v.

    A bias is added to every score of its key: log n lets one key stand for n tokens.
    """
    if not prefers_products(q_BhMd) or q_BhMd.shape[2] == 1:
        return F.scaled_dot_product_attention(
            q_BhMd, k_BhNd, v_BhNd, None if bias_BN is None else bias_BN[:, None, None]
        )
    out_BMhd = q_BhMd.new_empty(len(q_BhMd), q_BhMd.shape[2], *q_BhMd.shape[1::2])
    out_BhMd = out_BMhd.transpose(1, 2)
    for some in parts_in_cache(q_BhMd, k_BhNd):
        bias_KN = None if bias_BN is None else bias_BN[some[0]]
        out_BhMd[some] = probabilities(q_BhMd[some], k_BhNd[some], bias_KN) @ v_BhNd[some]
    return out_BhMd


def parts_in_cache(q_BhMd: Tensor, k_BhNd: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield frames and heads, as many at once as their scores leave in cache: all heads of frames, or some of one."""
    if torch.compiler.is_compiling():
        # What a compiler makes of the products keeps its own blocks.
        yield slice(None), slice(None)
        return
    num_frames, num_heads = q_BhMd.shape[:2]
    head_bytes = max(1, q_BhMd.shape[2] * k_BhNd.shape[2] * q_BhMd.element_size())
    frames_at_once = max(1, SCORE_BYTES // (num_heads * head_bytes))
    heads_at_once = min(num_heads, max(1, SCORE_BYTES // head_bytes))
    for start in range(0, num_frames, frames_at_once):
        for first in range(0, num_heads, heads_at_once):
            yield slice(start, start + frames_at_once), slice(first, first + heads_at_once)


def probabilities(q_KhMd: Tensor, k_KhNd: Tensor, bias_KN: Tensor | None = None) -> Tensor:
    """Return [K, h, M, N]: softmax(q kᵀ / √d + bias)."""
    q_KhMd = q_KhMd * q_KhMd.shape[-1] ** -0.5
    # What all keys have in common adds the same to a row's scores, and would cost them digits: DINO's reach hundreds.
    k_KhNd = k_KhNd - k_KhNd.mean(2, keepdim=True)
    if bias_KN is not None:
        # As one more number of each head, so that a score is rounded once.
        q_KhMd = F.pad(q_KhMd, (0, 1), value=1.0)
        bias_KhN1 = bias_KN[:, None, :, None].expand(-1, k_KhNd.shape[1], -1, -1)
        k_KhNd = torch.cat([k_KhNd, bias_KhN1.to(k_KhNd)], dim=-1)
    return torch.softmax(q_KhMd @ k_KhNd.mT, -1)


def prefers_products(q_BhMd: Tensor) -> bool:
    """Say whether plain products are faster than the fused kernel for such queries; never for training."""
    return (
        PRODUCTS_ARE_FASTER
        and q_BhMd.dtype == torch.bfloat16
        and q_BhMd.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def has_products_without_tiles() -> bool:
    """Say whether the processor multiplies bfloat16, and has no tiles for it, of which the fused kernel makes use."""
    # Newer than the oldest PyTorch that the methods run on.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16")) and not capabilities.get("amx_bf16")


PRODUCTS_ARE_FASTER = has_products_without_tiles()
"""For bfloat16, on this processor."""
