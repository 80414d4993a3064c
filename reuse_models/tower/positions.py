"""Where tokens stand: positions at another size of frames, and rotary ones.

Shapes: N tokens (prefix first), D width, d head width, P patches a side, A patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.tower.shape import VitShape


def at_size(weights: Mapping[str, Tensor], shape: VitShape, image_px: int | None) -> tuple[dict[str, Tensor], VitShape]:
    """Return a tower's weights and shape at another size of frames, its own where that is None.

    Added positions are interpolated bicubically, in float32, with antialiasing where the model's own code does so
    (DINOv2 with registers); rotary ones are computed anew.

    Raises:
        ValueError: The size is no multiple of the tower's patches.
    """
    if image_px is None or image_px == shape.image_px:
        return dict(weights), shape
    if image_px < shape.patch_px or image_px % shape.patch_px:
        nearest = max(1, round(image_px / shape.patch_px)) * shape.patch_px
        raise ValueError(
            f"image_px: got {image_px}, expected a multiple of the tower's patches of {shape.patch_px} px; "
            f"the nearest is {nearest}"
        )
    resized = dataclasses.replace(shape, image_px=image_px)
    changed = {"position": _scaled(weights["position"], shape, resized.patches_per_side)}
    if shape.rope_theta is not None:
        changed["rotary_2Nd"] = rotary_table(resized).to(weights["rotary_2Nd"])
    return {**weights, **changed}, resized


def _scaled(position_ND: Tensor, shape: VitShape, side: int) -> Tensor:
    own_side, prefix = shape.patches_per_side, shape.num_prefix
    if position_ND.is_meta:  # without_weights() there is nothing to interpolate
        return position_ND.new_empty(prefix + side**2, shape.width)
    # The bias of patches lies on their positions: interpolation, whose weights sum to 1, leaves it as it is.
    grid_1DPP = position_ND[prefix:].float().unflatten(0, (own_side, own_side)).permute(2, 0, 1)[None]
    antialias = shape.num_registers > 0
    scaled_1DPP = F.interpolate(grid_1DPP, (side, side), mode="bicubic", align_corners=False, antialias=antialias)
    patches_AD = scaled_1DPP[0].permute(1, 2, 0).flatten(0, 1).to(position_ND.dtype)
    return torch.cat([position_ND[:prefix], patches_AD])


def rotary_table(shape: VitShape) -> Tensor:
    """Return [2, N, d]: cos and sin of the angles by which q and k of each token are turned (DINOv3).

    A patch's angles are 2 pi times the coordinates of its centre in -1..1, y and then x, over rope_theta's powers; both
    halves of a head have the same. A turn is x cos + (-second half, first half) sin: the sign is that of sin here.

    Source: DINOv3 (arXiv:2508.10104); equal to transformers' DINOv3ViTRopePositionEmbedding.
    """
    assert shape.rope_theta is not None
    side, head_dim = shape.patches_per_side, shape.head_dim
    frequencies = 1 / shape.rope_theta ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32)
    centres_P = 2 * torch.arange(0.5, side, dtype=torch.float32) / side - 1
    centres_A2 = torch.stack(torch.meshgrid(centres_P, centres_P, indexing="ij"), dim=-1).flatten(0, 1)
    angles_Ad = (2 * math.pi * centres_A2[:, :, None] * frequencies).flatten(1).tile(2)
    sign_d = torch.ones(head_dim)
    sign_d[: head_dim // 2] = -1.0
    prefix_2Sd = torch.stack([torch.ones(shape.num_prefix, head_dim), torch.zeros(shape.num_prefix, head_dim)])
    return torch.cat([prefix_2Sd, torch.stack([angles_Ad.cos(), angles_Ad.sin() * sign_d])], dim=1)
