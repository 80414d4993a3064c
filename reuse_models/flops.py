"""From work to FLOPs: 2 per multiply-accumulate, of everything that is executed.

A method reports units (tokens, pairs, frames) put through each part; this table, and nothing else, says what a unit
costs. Elementwise work (norms, activations, softmax, distances that are not products) is left out.

Shapes: G frames, K layers or 1, D width, d head width, M MLP width, E embedding width, P patches a side.
Source: the Déjà Vu paper, and docs/methods.md; checked against the executed operators by `counting.ExecutedFlops`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.method import Work
from reuse_models.tower.shape import VitShape

FLOPS_PER_MAC = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of work: what is counted, and the multiply-accumulates of one."""

    unit: str
    macs: Callable[[VitShape], int]
    per_layer: bool
    """Whether a method reports it layer by layer ([G, L]) or once a frame ([G, 1])."""


def _head_macs(shape: VitShape) -> int:
    if shape.has_cls:
        return shape.width * shape.embed_dim if shape.has_projection else 0
    # The pooling head, apart from what it does with every token: output projection and MLP of the pooled one.
    return shape.width**2 + 2 * shape.width * shape.mlp_width


PARTS: dict[str, Part] = {
    "patch_embedding": Part("patches", lambda shape: 3 * shape.patch_px**2 * shape.width, per_layer=False),
    "query": Part("tokens", lambda shape: shape.width**2, per_layer=True),
    "key_value": Part("tokens", lambda shape: 2 * shape.width**2, per_layer=True),
    "attention": Part("query-key pairs, scores and values, all heads", lambda shape: 2 * shape.width, per_layer=True),
    "projection": Part("tokens", lambda shape: shape.width**2, per_layer=True),
    "mlp": Part("tokens", lambda shape: shape.width * (shape.fc1_width + shape.mlp_width), per_layer=True),
    # k and v of every token that the last layer leaves, and the one query's scores and values: none in a head of CLS.
    "pooling": Part(
        "tokens", lambda shape: 0 if shape.has_cls else 2 * shape.width * (shape.width + 1), per_layer=False
    ),
    "head": Part("frames", _head_macs, per_layer=False),
    # What methods add. K is a layer's index: the boundary l-1 -> l is filed under layer l.
    "importance": Part("query-key pairs, scores alone, all heads", lambda shape: shape.width, per_layer=True),
    "scores": Part("query-key pairs, scores alone, all heads", lambda shape: shape.width, per_layer=True),
    "weighted_values": Part("query-key pairs, values alone, all heads", lambda shape: shape.width, per_layer=True),
    "similarity": Part("pairs of rows of width D", lambda shape: shape.width, per_layer=True),
    "key_similarity": Part("pairs of keys of one head's width", lambda shape: shape.head_dim, per_layer=True),
    "decision": Part(
        "tokens x hidden units, 3 numbers in and 2 out; the kind is a bias", lambda _: 3 + 2, per_layer=True
    ),
    "restoration": Part("rows x rank, of each of an MLP's two products", lambda shape: shape.width, per_layer=True),
    "codec_net": Part("multiply-accumulates", lambda _: 1, per_layer=False),
    "residual_token": Part("frames", lambda shape: shape.embed_dim * shape.width, per_layer=False),
}
"""Every part that a method may report. A part's name is its key in `Work.parts`."""


def flops_per_frame(shape: VitShape, work: Work) -> Tensor:
    """Return [G] float64: FLOPs of each frame that `work` describes.

    Raises:
        ValueError: Work names a part that PARTS does not, or its tensors disagree on G or K.
    """
    total_G: Tensor | None = None
    for name, units_GK in work.parts.items():
        part = PARTS.get(name)
        if part is None:
            raise ValueError(f"work: got part {name!r}, expected one of {', '.join(PARTS)}; add it to flops.PARTS")
        columns = shape.num_layers if part.per_layer else 1
        if units_GK.ndim != 2 or units_GK.shape[1] != columns:
            raise ValueError(f"work {name}: got {list(units_GK.shape)}, expected [G, {columns}]; report every layer")
        if total_G is not None and len(units_GK) != len(total_G):
            raise ValueError(f"work {name}: got {len(units_GK)} frames, expected {len(total_G)} as in the parts before")
        flops_G = units_GK.to(torch.float64).sum(1) * (FLOPS_PER_MAC * part.macs(shape))
        total_G = flops_G if total_G is None else total_G + flops_G
    return torch.zeros(0, dtype=torch.float64) if total_G is None else total_G


def dense_work(shape: VitShape, num_frames: int = 1, *, num_patches: int | None = None, num_more: int = 0) -> Work:
    """Return the work of `Vit.forward`: the strongest dense tower, which ends with CLS alone in its last layer.

    Of each frame may be there but `num_patches`, and `num_more` tokens beside prefix and patches.
    """
    patches = shape.num_patches if num_patches is None else num_patches
    tokens = shape.num_prefix + patches + num_more
    tokens_GL = torch.full((num_frames, shape.num_layers), tokens, dtype=torch.int64)
    queries_GL = tokens_GL.clone()
    queries_GL[:, -1] = last = 1 if shape.has_cls else tokens
    frames_G1 = torch.ones(num_frames, 1, dtype=torch.int64)
    return Work(
        {
            "patch_embedding": frames_G1 * patches,
            "query": queries_GL,
            "key_value": tokens_GL,
            "attention": queries_GL * tokens,
            "projection": queries_GL.clone(),
            "mlp": queries_GL.clone(),
            "pooling": frames_G1 * last,
            "head": frames_G1.clone(),
        }
    )


def dense_flops(shape: VitShape) -> float:
    """Return the FLOPs of one frame through `Vit.forward`: the denominator of every reduction."""
    return float(flops_per_frame(shape, dense_work(shape))[0])
