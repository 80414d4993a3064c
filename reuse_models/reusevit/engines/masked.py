"""ReuseViT with every token computed and reuse mixed in by a gate: the training forward, and the oracle of inference.

Shapes: C clips, F frames of a clip in computing order, N tokens (prefix first), A patches, L layers, b = L - 1
boundaries, D width, E embedding width, P patches a side.

Layers outside, frames inside: nothing that a boundary computes depends on its own gate, so that all frames of all
clips go through the tower's products together and only the mixing walks the frames one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reuse_models.reusevit.addon import ReusePolicy
from reuse_models.reusevit.engines.mixing import mix
from reuse_models.reusevit.engines.token_memory import State, Trace, choose_reference
from reuse_models.reusevit.frame_order import FrameStep, check_steps
from reuse_models.reusevit.gate import Features
from reuse_models.tower.vit import Vit

RECOMPUTED_SHARE = 1 / 3
"""Of the layers, the first ones, whose MLP's hidden units, the widest of what is kept, are computed again for the
backward pass: it comes to these when most of what the others kept is gone. One product more, in a third of layers."""


@dataclass(frozen=True, slots=True)
class MaskedOutput:
    """What a clip's frames became, in computing order."""

    embeddings_CFE: Tensor
    """Not normalised."""
    reuse_CFbN: Tensor
    """The gate's g, 0..1; 0 for the prefix and for dense frames."""
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


def masked_forward(vit: Vit, policy: ReusePolicy, clips: Clips, *, keep_last: bool = False) -> MaskedOutput:
    """Run clips through the tower with reuse; gradients flow through it, not into it.

    With `keep_last` the last layer runs for all tokens, and its output is kept.

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

    # What leads the order and refers to nothing depends on no trained weight: it records nothing for gradients.
    num_dense = next((index for index, step in enumerate(clips.steps) if step.candidates), num_frames)
    parts = ((pixels[: num_dense * num_clips], False), (pixels[num_dense * num_clips :], torch.is_grad_enabled()))
    inputs = (vit.embed(part) for part, _ in parts if len(part))
    states = [State(h_XND, vit.qkv(0, h_XND)) for h_XND in inputs]
    records = [recording for part, recording in parts if len(part)]
    gates: list[Tensor] = []
    for boundary in range(last):
        frames: list[_Computed] = []
        for state, recording in zip(states, records, strict=True):
            with torch.set_grad_enabled(recording):
                frames += _layer(vit, boundary, state, num_clips)
        used_F, g_FCA = _mix(policy, boundary, frames, codec_FCA, clips.steps)
        if boundary == last - 1:
            second_last = torch.cat([one.state.h_CAD for one in frames])
        del frames, state  # not needed beside what joins below: less at the peak
        states = [_joined(half) for half in (used_F[:num_dense], used_F[num_dense:]) if half]
        del used_F
        gates.append(g_FCA)

    whole = _joined(states)
    h_XND, qkv_XNC = whole.h_CAD, whole.qkv_CAC
    last_CFND = None
    if keep_last:
        last_XND = vit.close(last, h_XND, vit.attend(*vit.split_heads(qkv_XNC)))
        embeddings_XE = vit.head(last_XND)
        last_CFND = _frames(last_XND, num_frames).transpose(0, 1)
    else:
        embeddings_XE = vit.finish(qkv_XNC, h_XND)
    reuse_CFbA = torch.stack(gates).permute(2, 1, 0, 3)
    return MaskedOutput(
        embeddings_CFE=_frames(embeddings_XE, num_frames).transpose(0, 1),
        reuse_CFbN=torch.nn.functional.pad(reuse_CFbA, (vit.shape.num_prefix, 0)),
        second_last_CFND=_frames(second_last, num_frames).transpose(0, 1),
        last_CFND=last_CFND,
    )


@dataclass(frozen=True, slots=True)
class _Computed:
    """One frame of every clip after a layer, nothing reused yet."""

    pre_proj_CND: Tensor
    importance_CN: Tensor
    state: State
    """h, and q, k, v of the next layer, CLS included."""


def _layer(vit: Vit, index: int, state: State, num_clips: int) -> list[_Computed]:
    """Run layer `index` and the next one's projections for all frames at once; return them one by one.

    They are unbound, not indexed: the gradient of an index is a tensor of zeros as large as all frames.
    """
    q_XhNd, k_XhNd, v_XhNd = vit.split_heads(state.qkv_CAC)
    pre_proj_XND = vit.attend(q_XhNd, k_XhNd, v_XhNd)
    importance_XN = vit.importance(q_XhNd, k_XhNd)
    h_XND = vit.project(index, state.h_CAD, pre_proj_XND)
    if torch.is_grad_enabled() and index < RECOMPUTED_SHARE * vit.shape.num_layers:
        h_XND = checkpoint(vit.mlp, index, h_XND, use_reentrant=False, preserve_rng_state=False)
    else:
        h_XND = vit.mlp(index, h_XND)
    all_four = (pre_proj_XND, importance_XN, h_XND, vit.qkv(index + 1, h_XND))
    frames = zip(*(x.unflatten(0, (-1, num_clips)).unbind(0) for x in all_four), strict=True)
    return [_Computed(pre_proj, importance, State(h, qkv)) for pre_proj, importance, h, qkv in frames]


def _joined(states: Sequence[State]) -> State:
    """Put frames back together, frame after frame."""
    return State(torch.cat([state.h_CAD for state in states]), torch.cat([state.qkv_CAC for state in states]))


def _mix(
    policy: ReusePolicy, boundary: int, frames: Sequence[_Computed], codec_FCA: Tensor, steps: Sequence[FrameStep]
) -> tuple[list[State], Tensor]:
    """Return the state used by the next layer, frame by frame, and g_FCA."""
    traces: dict[int, Trace] = {}
    referred = {frame for step in steps for frame in step.candidates}
    used, gates = [], []
    for frame, codec_CA, step in zip(frames, codec_FCA.unbind(0), steps, strict=True):
        trace = Trace(frame.pre_proj_CND, frame.state, frame.state, step.group)
        g_CA = frame.pre_proj_CND.new_zeros(codec_CA.shape)
        if step.candidates:
            candidates = tuple(traces[frame] for frame in step.candidates)
            reference = choose_reference(frame.pre_proj_CND, candidates, policy.reference_state, step.group)
            clip_ids = [(clip, step.frame) for clip in range(len(codec_CA))]
            prefix = frame.importance_CN.shape[1] - codec_CA.shape[1]
            similarity_CA, importance_CA = reference.similarity_CA[:, prefix:], frame.importance_CN[:, prefix:]
            features = Features(importance_CA, similarity_CA, codec_CA, step.kind, clip_ids)
            g_CA = policy.gate(boundary, features).to(frame.pre_proj_CND.dtype)
            # The prefix is mixed as well, none of it reused: patches would have to be cut out and put back otherwise.
            g_CN = torch.nn.functional.pad(g_CA, (prefix, 0))
            remembers = policy.reference_state != "chained" and step.frame in referred
            trace = mix(g_CN, trace, reference, policy.addon.restoration(boundary), remembers=remembers)
        traces[step.frame] = trace
        gates.append(g_CA)
        used.append(trace.used)
    return used, torch.stack(gates)


def _frames(x_X: Tensor, num_frames: int) -> Tensor:
    return x_X.reshape(num_frames, -1, *x_X.shape[1:])
