"""Mixing computed with restored states, keeping for the backward pass only what a gradient needs.

Autograd, told in plain operations, would keep both sides of every product of the mixture: some 25 tensors as large as
a layer's input for each boundary. What is needed is less, since d(a + g (b - a)) asks for g and b - a alone, and a
correction is known by its few hidden units:

    used       = own + g (reference + up relu(down (own pre_proj - reference pre_proj)) - own)
    remembered = own + g (reference - own)
    pre_proj   = own pre_proj + g (reference pre_proj - own pre_proj)

Kept are both pre_proj (attention keeps one of them anyway), reference - own, and the hidden units. Where g is 0 or 1
both ways give the very value of one side, so that exact ties stay exact.

Shapes: C clips, N tokens (or patches), D width, R rank, Q = 4 R, X = C N.
Source: docs/methods.md; the gradients are those of the plain formula, to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reuse_models.reusevit.addon import CORRECTED, Restoration
from reuse_models.reusevit.engines.token_memory import Reference, State, Trace


def mix(g_CN: Tensor, own: Trace, reference: Reference, restoration: Restoration, *, remembers: bool) -> Trace:
    """Return what a frame leaves: what its next layer uses and what later frames refer to.

    Args:
        g_CN: 1 where a token is reused, 0 where it is computed, or between in soft training.
        own: The frame as computed.
        reference: The chosen reference of every token.
        restoration: This boundary's; beside a tower of 16 bits its weights are rounded here and keep their gradients.
        remembers: Whether anything refers to unrestored states; else `remembered` is `used`.
    """
    found: tuple[Tensor, ...] = _Mixture.apply(  # type: ignore[no-untyped-call]
        remembers,
        g_CN,
        own.pre_proj_CAD,
        own.used.h_CAD,
        own.used.qkv_CAC,
        reference.pre_proj_CAD,
        reference.state.h_CAD,
        reference.state.qkv_CAC,
        restoration.down_QD.to(g_CN),
        restoration.up_4DR.to(g_CN),
    )
    used = State(found[1], found[2])
    return Trace(found[0], used, State(found[3], found[4]) if remembers else used, own.group)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  torch's way: each tensor with a gradient is an argument
        ctx: Any,
        remembers: bool,
        g_CN: Tensor,
        own_pre_proj_CND: Tensor,
        own_h_CND: Tensor,
        own_qkv_CNC: Tensor,
        pre_proj_CND: Tensor,
        h_CND: Tensor,
        qkv_CNC: Tensor,
        down_QD: Tensor,
        up_4DR: Tensor,
    ) -> tuple[Tensor, ...]:
        g_CN1 = g_CN[..., None]
        hidden_CNQ = torch.relu((own_pre_proj_CND - pre_proj_CND) @ down_QD.mT)
        used_h_CND, used_qkv_CNC = _restored(h_CND, qkv_CNC, hidden_CNQ, up_4DR)
        used_h_CND.lerp_(own_h_CND, 1 - g_CN1)
        used_qkv_CNC.lerp_(own_qkv_CNC, 1 - g_CN1)
        changes = (h_CND - own_h_CND, qkv_CNC - own_qkv_CNC)
        ctx.save_for_backward(g_CN, own_pre_proj_CND, pre_proj_CND, *changes, hidden_CNQ, down_QD, up_4DR)
        ctx.set_materialize_grads(False)
        mixed_CND = torch.lerp(own_pre_proj_CND, pre_proj_CND, g_CN1)
        if not remembers:
            return mixed_CND, used_h_CND, used_qkv_CNC
        remembered = (torch.lerp(own_h_CND, h_CND, g_CN1), torch.lerp(own_qkv_CNC, qkv_CNC, g_CN1))
        return mixed_CND, used_h_CND, used_qkv_CNC, *remembered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pre_proj_CND: Tensor | None, *states: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return gradients; `pre_proj_CND` and `states` are those of forward's results."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        g_CN, own_pre_proj_CND, reference_CND, *changes, hidden_CNQ, down_QD, up_4DR = saved
        g_CN1 = g_CN[..., None]
        rank = up_4DR.shape[-1]
        used, remembered = states[:2], states[2:] or (None, None)
        change_CND = reference_CND - own_pre_proj_CND

        g_grad_CN = torch.zeros_like(g_CN)
        pre_proj = _sides(pre_proj_CND, change_CND, g_CN1, g_grad_CN)
        h, qkv = (
            _sides(_sum(one, other), change, g_CN1, g_grad_CN)
            for one, other, change in zip(used, remembered, changes, strict=True)
        )
        own_pre_proj, reference_pre_proj = pre_proj
        down_grad_QD = up_grad_4DR = None
        if rank and any(one is not None for one in used):
            up_grad_4DR = torch.zeros_like(up_4DR)
            hidden_grad_CNQ = torch.zeros_like(hidden_CNQ)
            scaled_CNQ = g_CN1 * hidden_CNQ
            for correction, grad_CND in _by_correction(used):
                columns = slice(correction * rank, (correction + 1) * rank)
                hidden_grad_CNQ[..., columns] = grad_CND @ up_4DR[correction]
                up_grad_4DR[correction] = grad_CND.flatten(0, 1).mT @ scaled_CNQ[..., columns].flatten(0, 1)
            g_grad_CN += (hidden_grad_CNQ * hidden_CNQ).sum(-1)
            hidden_grad_CNQ *= g_CN1
            hidden_grad_CNQ *= hidden_CNQ > 0
            # change is reference - own, the restoration's input is own - reference.
            down_grad_QD = -(hidden_grad_CNQ.flatten(0, 1).mT @ change_CND.flatten(0, 1))
            if ctx.needs_input_grad[2] or ctx.needs_input_grad[5]:
                difference_grad_CND = hidden_grad_CNQ @ down_QD
                own_pre_proj = _sum(own_pre_proj, difference_grad_CND)
                reference_pre_proj = _sum(reference_pre_proj, -difference_grad_CND)
        own_and_reference = (own_pre_proj, h[0], qkv[0], reference_pre_proj, h[1], qkv[1])
        return None, g_grad_CN, *own_and_reference, down_grad_QD, up_grad_4DR


def _sides(
    grad_CND: Tensor | None, change_CND: Tensor, g_CN1: Tensor, g_grad_CN: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of own and reference, given that of own + g (reference - own); add to that of g."""
    if grad_CND is None:
        return None, None
    g_grad_CN += (grad_CND * change_CND).sum(-1)
    reference_CND = grad_CND * g_CN1
    return grad_CND - reference_CND, reference_CND


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _restored(h_CND: Tensor, qkv_CNC: Tensor, hidden_CNQ: Tensor, up_4DR: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reference's h and qkv with their corrections, in fresh memory."""
    if not up_4DR.shape[-1]:
        return h_CND.clone(), qkv_CNC.clone()
    hidden_h, *hidden_qkv = hidden_CNQ.flatten(0, 1).chunk(len(CORRECTED), dim=-1)
    restored_h_CND = torch.addmm(h_CND.flatten(0, 1), hidden_h, up_4DR[0].mT).view_as(h_CND)
    corrections = [one @ up_DR.mT for one, up_DR in zip(hidden_qkv, up_4DR[1:], strict=True)]
    return restored_h_CND, torch.cat(corrections, dim=-1).view_as(qkv_CNC).add_(qkv_CNC)


def _by_correction(used: tuple[Tensor | None, ...]) -> list[tuple[int, Tensor]]:
    """Return (number, gradient) of each of the corrections of h, q, k, v that has one."""
    h_CND, qkv_CNC = used
    found = [] if h_CND is None else [(0, h_CND)]
    if qkv_CNC is not None:
        found += enumerate(qkv_CNC.chunk(len(CORRECTED) - 1, dim=-1), start=1)
    return found
