"""ReuseViT with every token computed and reuse mixed in by a gate: the training forward, and the oracle of inference.

Shapes: C clips, F frames of a clip in computing order, N tokens (CLS first), A = N - 1 patches, L layers, b = L - 1
boundaries, D width, E embedding width, P patches a side.

Layers outside, frames inside: nothing that a boundary computes depends on its own gate, so that all frames of all
clips go through the tower's products together and only the mixing walks the frames one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.frame_order import FrameStep, check_steps
from reuse_models.gate import Features
from reuse_models.rules import Rules
from reuse_models.token_memory import State, Trace, choose_reference
from reuse_models.vit import Vit


@dataclass(frozen=True, slots=True)
class MaskedOutput:
    """What a clip's frames became, in computing order."""

    embeddings_CFE: Tensor
    """Not normalised."""
    reuse_CFbN: Tensor
    """The gate's g, 0..1; 0 for CLS and for dense frames."""
    second_last_CFND: Tensor
    """Output of layer L-2 as computed for every token, before the last boundary replaces reused ones."""
    last_CFND: Tensor | None
    """Output of layer L-1 for every token; None unless asked for, since only CLS's reaches the embedding."""


@dataclass(frozen=True, slots=True)
class Clips:
    """Frames of C clips that share one computing order."""

    pixels_CF3HW: Tensor
    """Frames in computing order."""
    codec_CFPP: Tensor
    """Scores of the codec net for the same frames."""
    steps: Sequence[FrameStep]


def masked_forward(vit: Vit, rules: Rules, clips: Clips, want_last: bool = False) -> MaskedOutput:
    """Run clips through the tower with reuse.

    Args:
        vit: The frozen tower; gradients flow through it, not into it.
        rules: The add-on, the gate (soft for training) and the semantics.
        clips: Frames, codec scores and their order.
        want_last: Compute the last layer's output for all tokens too.

    Raises:
        ValueError: The order refers to frames not computed, or frames do not fit order or tower.
    """
    check_steps(clips.steps)
    num_clips, num_frames = clips.pixels_CF3HW.shape[:2]
    if num_frames != len(clips.steps):
        raise ValueError(f"clips: got {num_frames} frames, expected {len(clips.steps)} as in their order; cut them")
    last = vit.shape.num_layers - 1
    pixels = clips.pixels_CF3HW.transpose(0, 1).flatten(0, 1)  # frame after frame, so that one frame is one block
    vit.check_pixels(pixels)
    codec_FCA = clips.codec_CFPP.transpose(0, 1).flatten(2)

    h_XND = vit.embed(pixels)
    qkv_XNC = vit.qkv(0, h_XND)
    gates: list[Tensor] = []
    for boundary in range(last):
        q_XhNd, k_XhNd, v_XhNd = vit.split_heads(qkv_XNC)
        pre_proj_XND = vit.attend(q_XhNd, k_XhNd, v_XhNd)
        importance_XN = vit.importance(q_XhNd, k_XhNd)
        h_XND = vit.close(boundary, h_XND, pre_proj_XND)
        second_last = h_XND
        qkv_XNC = vit.qkv(boundary + 1, h_XND)
        at = _Boundary(
            boundary,
            pre_proj_XND.view(num_frames, num_clips, *pre_proj_XND.shape[1:]),
            _frames(importance_XN, num_frames),
            codec_FCA,
        )
        computed = State(_frames(h_XND, num_frames), _frames(qkv_XNC, num_frames))
        used, g_FCA = _mix(rules, at, computed, clips.steps)
        h_XND, qkv_XNC = used.h_CAD.flatten(0, 1), used.qkv_CAC.flatten(0, 1)
        gates.append(g_FCA)

    q_XhNd, k_XhNd, v_XhNd = vit.split_heads(qkv_XNC)
    last_CFND = None
    if want_last:
        last_XND = vit.close(last, h_XND, vit.attend(q_XhNd, k_XhNd, v_XhNd))
        embeddings_XE = vit.head(last_XND)
        last_CFND = _frames(last_XND, num_frames).transpose(0, 1)
    else:
        embeddings_XE = vit.finish(q_XhNd, k_XhNd, v_XhNd, h_XND)
    reuse_CFbA = torch.stack(gates).permute(2, 1, 0, 3)
    return MaskedOutput(
        embeddings_CFE=_frames(embeddings_XE, num_frames).transpose(0, 1),
        reuse_CFbN=torch.nn.functional.pad(reuse_CFbA, (1, 0)),
        second_last_CFND=_frames(second_last, num_frames).transpose(0, 1),
        last_CFND=last_CFND,
    )


@dataclass(frozen=True, slots=True)
class _Boundary:
    index: int
    pre_proj_FCND: Tensor
    importance_FCN: Tensor
    codec_FCA: Tensor


def _mix(rules: Rules, at: _Boundary, computed: State, steps: Sequence[FrameStep]) -> tuple[State, Tensor]:
    """Return the state used by the next layer, [F, C, N, ·], and g_FCA."""
    traces: dict[int, Trace] = {}
    used_h, used_qkv, gates = [], [], []
    for index, step in enumerate(steps):
        own = State(computed.h_CAD[index, :, 1:], computed.qkv_CAC[index, :, 1:])
        pre_proj_CAD = at.pre_proj_FCND[index, :, 1:]
        if not step.candidates:
            g_CA = torch.zeros_like(at.codec_FCA[index])
            trace = Trace(pre_proj_CAD, own, own, step.group)
        else:
            candidates = tuple(traces[frame] for frame in step.candidates)
            reference = choose_reference(pre_proj_CAD, candidates, rules.semantics, step.group)
            clip_ids = [(clip, step.frame) for clip in range(len(pre_proj_CAD))]
            features = Features(
                at.importance_FCN[index, :, 1:], reference.similarity_CA, at.codec_FCA[index], step.kind, clip_ids
            )
            g_CA = rules.gate(at.index, features).to(pre_proj_CAD.dtype)
            h_CAD, qkv_CAC = rules.addon.restoration(at.index)(pre_proj_CAD - reference.pre_proj_CAD)
            restored = State(reference.state.h_CAD + h_CAD, reference.state.qkv_CAC + qkv_CAC)
            g_CA1 = g_CA[..., None]
            trace = Trace(
                pre_proj_CAD=g_CA1 * reference.pre_proj_CAD + (1 - g_CA1) * pre_proj_CAD,
                used=restored.mixed(g_CA, own),
                remembered=reference.state.mixed(g_CA, own),
                group=step.group,
            )
        traces[step.frame] = trace
        gates.append(g_CA)
        used_h.append(torch.cat([computed.h_CAD[index, :, :1], trace.used.h_CAD], dim=1))
        used_qkv.append(torch.cat([computed.qkv_CAC[index, :, :1], trace.used.qkv_CAC], dim=1))
    return State(torch.stack(used_h), torch.stack(used_qkv)), torch.stack(gates)


def _frames(x_X: Tensor, num_frames: int) -> Tensor:
    return x_X.reshape(num_frames, -1, *x_X.shape[1:])
