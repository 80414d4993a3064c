"""The state of ReuseViT between groups: one frame's worth of anchors at every boundary, whatever the reuse rate.

A group's frames meet all their references inside one pass through the layers, so that only the last anchor frame
outlives it: per stream and boundary pre_proj, its norm, h, q, k and v of N tokens. The artifact keeps five such tensors
for each of three reference frames.

Shapes: B streams, S of them at once, N tokens (CLS first; its row is never read), D width, C channels of a projection,
E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.reusevit.engines.token_memory import cosine_dtype
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

ROW_PAD = 16
"""Floats between rows of q, k, v: rows of 3 D floats are often a multiple of 4 KiB apart, where caches collide."""


@dataclass(frozen=True, slots=True)
class BoundaryAnchors:
    """What later frames refer to at the boundary into one layer; overwritten in place."""

    pre_proj_BND: Tensor
    norm_BN: Tensor
    """Length of each pre_proj."""
    h_BND: Tensor | None
    """None before the last layer of a tower with CLS: only CLS's is needed there, and CLS is always computed."""
    projected_BNC: Tensor
    """q, k, v side by side; k, v alone before the last layer of a tower with CLS. Rows are ROW_PAD apart."""


Anchors = tuple[BoundaryAnchors, ...]
"""Of all streams, at each of the L - 1 boundaries."""


def empty_projected(like: Tensor, num_frames: int, shape: VitShape, parts: int) -> Tensor:
    """Return [B, N, parts · D] whose rows lie ROW_PAD apart."""
    width = parts * shape.width
    # Zeros, since padding and the rows of CLS travel along in whole-row copies.
    return like.new_zeros(num_frames, shape.num_tokens, width + ROW_PAD)[..., :width]


def start_anchors(vit: Vit, num_streams: int) -> Anchors:
    """Return anchors of `num_streams` streams at each of the L - 1 boundaries, holding nothing yet."""
    shape = vit.shape
    like = vit.position
    anchors = []
    for layer in range(1, shape.num_layers):
        ends_in_cls = shape.has_cls and layer == shape.num_layers - 1
        tokens = (num_streams, shape.num_tokens)
        anchors.append(
            BoundaryAnchors(
                pre_proj_BND=like.new_zeros(*tokens, shape.width),
                norm_BN=like.new_zeros(tokens, dtype=cosine_dtype(like)),
                h_BND=None if ends_in_cls else like.new_zeros(*tokens, shape.width),
                projected_BNC=empty_projected(like, num_streams, shape, 2 if ends_in_cls else 3),
            )
        )
    return tuple(anchors)


def compute_dense(vit: Vit, anchors: Anchors, streams: Sequence[int], pixels_S3HW: Tensor) -> Tensor:
    """Compute one frame of each stream whole, make it the streams' anchor, and return embedding_SE."""
    streams_S = torch.tensor(streams, device=vit.position.device)
    h_SND = vit.embed(pixels_S3HW)
    projected_SNC = vit.qkv(0, h_SND)
    for layer, at in enumerate(anchors):
        pre_proj_SND = vit.attend(*vit.split_heads(projected_SNC))
        h_SND = vit.close(layer, h_SND, pre_proj_SND)
        projected_SNC = vit.key_value(layer + 1, h_SND) if at.h_BND is None else vit.qkv(layer + 1, h_SND)
        at.pre_proj_BND[streams_S] = pre_proj_SND
        at.norm_BN[streams_S] = norms(pre_proj_SND)
        at.projected_BNC[streams_S] = projected_SNC
        if at.h_BND is not None:
            at.h_BND[streams_S] = h_SND
    return vit.finish(projected_SNC, h_SND)


def state_bytes_per_stream(shape: VitShape, bytes_per_value: int = 4) -> int:
    """Return N · ((L - 1)(5 D + 1 + pad) - 2 D) values: with CLS, 3 of 5 tensors are left before the last layer."""
    saved = 2 * shape.width if shape.has_cls and shape.num_layers > 1 else 0
    per_token = (shape.num_layers - 1) * (5 * shape.width + 1 + ROW_PAD) - saved
    return shape.num_tokens * per_token * bytes_per_value


def tensors_of(anchors: Anchors) -> list[Tensor]:
    """Return all that anchors hold, in a fixed order."""
    return [x for at in anchors for x in (at.pre_proj_BND, at.norm_BN, at.h_BND, at.projected_BNC) if x is not None]


def norms(x_XD: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the length of each row, in float32 or better."""
    lengths_X: Tensor = torch.linalg.vector_norm(x_XD, dim=-1, dtype=cosine_dtype(x_XD), out=out)
    return lengths_X


def cosine_from_norms(difference_X: Tensor, norm_X: Tensor, other_X: Tensor) -> Tensor:
    """Return the cosine of two rows from their lengths and that of their difference.

    The difference is needed anyway, and lengths are read in one pass without a buffer for the products.
    """
    product_X = (norm_X * other_X).clamp_min(1e-20)
    return (norm_X.square() + other_X.square() - difference_X.square()) / (2 * product_X)
