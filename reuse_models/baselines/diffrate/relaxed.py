"""DiffRate with real-numbered token counts: an embedding that the counts have a gradient through.

Every token goes through every layer; how much of it is still there is a weight in 0..1 that attention and merging
count it with. A token's weight falls from 1 to 0 over a window of ranks around the count. As the window closes, the
embedding becomes that of `DiffRate` under the rounded counts.

Shapes: B frames, N tokens (prefix first), D width, h heads, d head width, M queries; l the layers before the last.
Source: DiffRate (arXiv:2305.17997), section 3.2, which makes hard masks and passes the gradient straight through them;
ours keeps them soft and narrows them.

What the backward pass keeps of a frame is known from the tower's shape (`kept_values`), so that as many frames go
through at once as memory takes (`plan_turns`); where one is too many, layers are computed again instead (`recompute`).
Checked against what autograd keeps and how a process grows (`tests/reuse_models/baselines/diffrate/test_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reuse_models.baselines.diffrate.method import rank_prefix_first
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

NARROWEST = 1e-3
"""Tokens: a window so narrow is a step."""
LEAST_THERE = 1e-6
"""Of a token that a head pools: what is gone altogether has a logarithm."""
DENSE_BATCH = 32
"""Frames that are judged at once, without gradients."""
LAYERS_IN_WORK = 2
"""Beside what is kept, a backward pass holds gradients of the layer that it is in: less than that layer keeps, twice
over for the margin."""
SETUP_BYTES = 192 * 2**20
"""Code and buffers of the first products, 30 MiB, and of `torch.utils.checkpoint`, another 110 where layers are
computed twice; the rest is margin."""


@dataclass(frozen=True, slots=True)
class RelaxedCounts:
    """Tokens kept in each layer but the last, the prefix counted, as real numbers."""

    pruned_l: Tensor
    merged_l: Tensor
    """At most those kept after pruning, which are at most those kept after merging in the layer before."""


def kept_values(shape: VitShape) -> int:
    """Count the float32 that the backward pass keeps of one frame in one layer: h N (3 N + 2) + N (7 D + M + 14).

    Attention is kept as exponentials, weighted and divided; D wide are q, k, v, the inputs of both norms, what is
    merged and its sum; M wide is the MLP. The rest is a handful of numbers and indices a token.
    """
    tokens = shape.num_tokens
    return shape.num_heads * tokens * (3 * tokens + 2) + tokens * (7 * shape.width + shape.mlp_width + 14)


@dataclass(frozen=True, slots=True)
class Turns:
    """How a step's frames go through the relaxed tower."""

    num_frames: int
    """At once."""
    recompute: bool
    """Whether a frame's layers are computed twice rather than kept."""
    kept_bytes: int
    """For the backward pass of one turn; no more than allowed, unless one frame takes more."""


def plan_turns(shape: VitShape, frames_per_step: int, kept_mib: int) -> Turns:
    """Let as many frames go through at once as `kept_mib` takes, one at least."""
    layers, allowed = shape.num_layers - 1, kept_mib * 2**20
    layer_bytes = 4 * kept_values(shape)
    if at_once := min(frames_per_step, allowed // max(1, layers * layer_bytes)):
        return Turns(at_once, False, at_once * layers * layer_bytes)
    inputs_bytes = 4 * layers * shape.num_tokens * (shape.width + 8)
    at_once = max(1, min(frames_per_step, allowed // (inputs_bytes + layer_bytes)))
    return Turns(at_once, True, at_once * (inputs_bytes + layer_bytes))


def search_bytes(shape: VitShape, turns: Turns, num_frames: int, bytes_per_frame: int) -> int:
    """Bound a search's memory beside the tower: frames, their embeddings, and one turn or one judged batch.

    It holds where freed tensors go back to the system (`training/memory.py`). Of it, 46 to 83 % were measured.
    Frames count as they are given, before they are prepared.
    """
    pixels_bytes = 2 * 4 * 3 * shape.image_px**2  # beside the frames as rows of patches
    turn = turns.kept_bytes + turns.num_frames * (LAYERS_IN_WORK * 4 * kept_values(shape) + pixels_bytes)
    tokens = shape.num_tokens
    judged = 4 * tokens * (9 * shape.width + shape.mlp_width + 3 * tokens) + pixels_bytes
    frames = num_frames * (bytes_per_frame + 4 * shape.embed_dim)
    return SETUP_BYTES + frames + max(turn, min(DENSE_BATCH, num_frames) * judged)


def relaxed_embed(
    vit: Vit, frames_B3HW: Tensor, counts: RelaxedCounts, window: float, *, recompute: bool = False
) -> Tensor:
    """Return embedding_BE.

    Args:
        vit: The tower, frozen.
        frames_B3HW: Normalised for the tower.
        counts: Tokens kept.
        window: Width of the fall as a share of the tokens that a layer takes away; 0 is a step.
        recompute: Keep each layer's input alone and compute the rest again in the backward pass: a third more work, the
            memory of one layer.
    """
    last = vit.shape.num_layers - 1
    h_BND = vit.embed(frames_B3HW)
    there_BN = h_BND.new_ones(h_BND.shape[:2])
    entering = counts.pruned_l.new_tensor(float(vit.shape.num_tokens))
    for layer in range(last):
        pruned, merged = counts.pruned_l[layer], counts.merged_l[layer]
        # One width for both, so that nothing leaves where nothing is merged; narrow where little is taken away, since a
        # layer that keeps all tokens must keep the last one whole.
        width = (window * (entering - merged + 0.5)).clamp_min(NARROWEST)
        values = vit, layer, h_BND, there_BN, pruned, merged, width
        h_BND, there_BN = checkpoint(_layer, *values, use_reentrant=False) if recompute else _layer(*values)
        entering = merged
    q_BhNd, k_BhNd, v_BhNd = vit.split_heads(vit.qkv(last, h_BND))
    asked = vit.shape.num_last_queries
    attention_BhMN = _attention(q_BhNd[:, :, :asked], k_BhNd, there_BN)
    h_BMD = vit.close(last, h_BND[:, :asked], (attention_BhMN @ v_BhNd).transpose(1, 2).flatten(2))
    return vit.head(h_BMD, None if vit.shape.has_cls else there_BN.clamp_min(LEAST_THERE).log())


def _received(vit: Vit, attention_BhNN: Tensor, there_BN: Tensor) -> Tensor:
    """Return each token's importance: what CLS pays it, or the mean over the tokens that are there."""
    if vit.shape.has_cls:
        return attention_BhNN[:, :, 0].sum(1)
    return torch.einsum("bhmn,bm->bn", attention_BhNN, there_BN) / there_BN.sum(1, keepdim=True)


def _layer(  # noqa: PLR0913, PLR0917  torch's way: each tensor with a gradient is an argument
    vit: Vit, layer: int, h_BND: Tensor, there_BN: Tensor, pruned: Tensor, merged: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the layer's output and what is still there of each token."""
    q_BhNd, k_BhNd, v_BhNd = vit.split_heads(vit.qkv(layer, h_BND))
    attention_BhNN = _attention(q_BhNd, k_BhNd, there_BN)
    h_BND = vit.project(layer, h_BND, (attention_BhNN @ v_BhNd).transpose(1, 2).flatten(2))
    rank_BN = _ranks(_received(vit, attention_BhNN.detach(), there_BN.detach()), vit.shape.num_prefix)
    staying_BN = _weight(rank_BN, merged, width)
    leaving_BN = there_BN * (_weight(rank_BN, pruned, width) - staying_BN)
    h_BND = vit.mlp(layer, _merge(h_BND, leaving_BN, rank_BN + 0.5 < merged, vit.shape.num_prefix))
    return h_BND, there_BN * staying_BN


def _attention(q_BhMd: Tensor, k_BhNd: Tensor, there_BN: Tensor) -> Tensor:
    """Return attention_BhMN in which each key counts as much as is there of it.

    Weights are multiplied rather than their logarithms added: those of 0 would have no gradient.
    """
    scores_BhMN = q_BhMd @ k_BhNd.mT * q_BhMd.shape[-1] ** -0.5
    weights_BhMN: Tensor = (scores_BhMN - scores_BhMN.detach().amax(-1, keepdim=True)).exp() * there_BN[:, None, None]
    return weights_BhMN / weights_BhMN.sum(-1, keepdim=True).clamp_min(1e-9)


def _ranks(importance_BN: Tensor, prefix: int) -> Tensor:
    """Return each token's place: the prefix in its order, then by importance, most first."""
    rank_prefix_first(importance_BN, prefix)
    return importance_BN.argsort(-1, descending=True).argsort(-1).to(importance_BN.dtype)


def _weight(rank_BN: Tensor, kept: Tensor, width: Tensor) -> Tensor:
    """Return weight_BN: 1 for the first `kept` ranks, 0 beyond, falling in between; a step rounds `kept`."""
    return torch.sigmoid((kept - rank_BN - 0.5) / width)


def _merge(h_BND: Tensor, leaving_BN: Tensor, kept_BN: Tensor, prefix: int) -> Tensor:
    """Average what leaves each token into the most similar kept one, never the prefix, by the weight that leaves."""
    unit_BND = F.normalize(h_BND.detach(), dim=-1)
    itself_NN = torch.eye(h_BND.shape[1], dtype=torch.bool, device=h_BND.device)
    similarity_BNN = (unit_BND @ unit_BND.mT).masked_fill(~kept_BN[:, None] | itself_NN, -torch.inf)
    similarity_BNN[:, :, :prefix] = -torch.inf
    into_BN = similarity_BNN.argmax(-1)
    size_BN = torch.ones_like(leaving_BN).scatter_add(1, into_BN, leaving_BN)
    sum_BND = h_BND.scatter_add(1, into_BN[..., None].expand_as(h_BND), h_BND * leaving_BN[..., None])
    return sum_BND / size_BN[..., None]
