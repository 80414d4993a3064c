"""What a frame leaves behind for later frames, and under which of three answers (docs/methods.md); their similarity.

Shapes: C clips, N tokens, A patches, D width. Everything is of one boundary and of patches alone: CLS is never reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ReferenceState = Literal["anchor", "chained", "grouped"]
"""All that `masked` computes: `chained` is what the published training does, `grouped` its evaluation."""
EngineState = Literal["anchor", "grouped"]
ENGINE_STATES: tuple[EngineState, ...] = ("anchor", "grouped")
"""Those that inference computes: ours, and what published checkpoints are evaluated with."""
LEAST_NORM = 1e-8
"""Shorter vectors are taken for this long, as torch.cosine_similarity does."""


@dataclass(frozen=True, slots=True)
class State:
    """h, and q, k, v side by side, of the same patches: the input of a layer."""

    h_CAD: Tensor
    qkv_CAC: Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """What one frame leaves at one boundary."""

    pre_proj_CAD: Tensor
    """Of the frame in which the patch was last computed, whatever the reference state."""
    used: State
    """What the frame's own next layer works with."""
    remembered: State
    """What later frames refer to, by the reference state; `grouped` tells group mates this and later groups `used`."""
    group: int

    def referred(self, reference_state: ReferenceState, group: int) -> State:
        """Return the state that a frame of `group` finds here."""
        if reference_state == "chained" or (reference_state == "grouped" and group != self.group):
            return self.used
        return self.remembered


@dataclass(frozen=True, slots=True)
class Reference:
    """The chosen reference of every patch."""

    similarity_CA: Tensor
    pre_proj_CAD: Tensor
    state: State


def choose_reference(
    pre_proj_CAD: Tensor, candidates: tuple[Trace, ...], reference_state: ReferenceState, group: int
) -> Reference:
    """Pick the candidate whose pre_proj is most similar; the first in computing order where they are equal.

    The choice carries no gradient, the similarity does.
    """
    best = candidates[0]
    with torch.no_grad():
        cosine_CA = _cosine(pre_proj_CAD, best.pre_proj_CAD)
    chosen = best.pre_proj_CAD
    state = best.referred(reference_state, group)
    for other in candidates[1:]:
        with torch.no_grad():
            other_CA = _cosine(pre_proj_CAD, other.pre_proj_CAD)
        nearer_CA = other_CA > cosine_CA
        nearer_CA1 = nearer_CA[..., None]
        found = other.referred(reference_state, group)
        cosine_CA = torch.where(nearer_CA, other_CA, cosine_CA)
        chosen = torch.where(nearer_CA1, other.pre_proj_CAD, chosen)
        state = State(
            torch.where(nearer_CA1, found.h_CAD, state.h_CAD), torch.where(nearer_CA1, found.qkv_CAC, state.qkv_CAC)
        )
    return Reference(similarity(pre_proj_CAD, chosen, cosine_CA), chosen, state)


def _cosine(a_CAD: Tensor, b_CAD: Tensor) -> Tensor:
    dtype = cosine_dtype(a_CAD)
    return torch.cosine_similarity(a_CAD.to(dtype), b_CAD.to(dtype), dim=-1)


def cosine_dtype(like: Tensor) -> torch.dtype:
    """Return the type of lengths and cosines, float32 or better: near 1, where cosines decide, 16 bits lose them."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def similarity(own_CND: Tensor, reference_CND: Tensor, cosine_CN: Tensor) -> Tensor:
    """Return cosine_CN, the cosine of the other two, computed already, with its gradient.

    That is computed again from the vectors: torch.cosine_similarity keeps both normalised beside them.
    """
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
