"""Cosine similarity whose gradient is recomputed from the vectors themselves.

torch.cosine_similarity keeps both vectors normalised beside the vectors, two tensors more for each reference.

Shapes: C clips, N tokens (or patches), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_NORM = 1e-8
"""Shorter vectors are taken for this long, as torch.cosine_similarity does."""


def cosine_dtype(like: Tensor) -> torch.dtype:
    """Return the type of lengths and cosines, float32 or better: near 1, where cosines decide, 16 bits lose them."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def similarity(own_CND: Tensor, reference_CND: Tensor, cosine_CN: Tensor) -> Tensor:
    """Return cosine_CN, the cosine of the other two, computed already, with its gradient."""
    found_CN: Tensor = _Similarity.apply(own_CND, reference_CND, cosine_CN)  # type: ignore[no-untyped-call]
    return found_CN


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_CND: Tensor, reference_CND: Tensor, cosine_CN: Tensor) -> Tensor:
        ctx.save_for_backward(own_CND, reference_CND, cosine_CN)
        return cosine_CN.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_CN: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of both vectors: d cos = (b / |b| - cos a / |a|) / |a| for a, and so on."""
        own_CND, reference_CND, cosine_CN = ctx.saved_tensors
        own_CN1, reference_CN1 = (
            torch.linalg.vector_norm(one, dim=-1, keepdim=True, dtype=cosine_CN.dtype).clamp_min_(LEAST_NORM)
            for one in (own_CND, reference_CND)
        )
        across_CN1 = grad_CN[..., None] / (own_CN1 * reference_CN1)
        along_CN1 = (grad_CN * cosine_CN)[..., None]
        grads: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            along_own_CN1 = along_CN1 / own_CN1.square()
            grads[0] = (reference_CND * across_CN1).addcmul_(own_CND, along_own_CN1, value=-1).to(own_CND)
        if ctx.needs_input_grad[1]:
            along_reference_CN1 = along_CN1 / reference_CN1.square()
            grads[1] = (own_CND * across_CN1).addcmul_(reference_CND, along_reference_CN1, value=-1).to(own_CND)
        return grads[0], grads[1], None
