"""Merging tokens of a frame: what DiffRate and ToMe share.

Shapes: B frames, N tokens, X of them chosen, m kept, D width; L layers, l the L - 1 before the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_models.method import Work
from reuse_models.tower.shape import VitShape


def take_tokens(x_BND: Tensor, index_BX: Tensor) -> Tensor:
    """Return x_BXD: chosen tokens of every frame."""
    return x_BND.gather(1, index_BX[..., None].expand(-1, -1, x_BND.shape[-1]))


def merge_into(
    kept_BmD: Tensor, kept_size_Bm: Tensor, merged_BXD: Tensor, merged_size_BX: Tensor, into_BX: Tensor
) -> tuple[Tensor, Tensor]:
    """Return kept tokens as averages of themselves and what merges into them, weighted by size; and the new sizes.

    `into_BX` says into which kept token, 0..m-1, each merged one goes; several may go into one.
    """
    size_Bm = kept_size_Bm.scatter_add(1, into_BX, merged_size_BX)
    sum_BmD = kept_BmD * kept_size_Bm[..., None]
    sum_BmD.scatter_add_(1, into_BX[..., None].expand_as(merged_BXD), merged_BXD * merged_size_BX[..., None])
    return sum_BmD.div_(size_Bm[..., None]), size_Bm


def reduced_work(shape: VitShape, projected_l: Tensor, left_l: Tensor) -> Work:
    """Return the work of one frame of which each layer but the last projects and then leaves so many tokens.

    What tokens are compared by is left out. The last layer runs for CLS alone where there is one; real numbers keep
    their gradient.
    """
    entering_L = torch.cat([left_l.new_full((1,), shape.num_tokens), left_l])
    last_1 = entering_L.new_ones(1) if shape.has_cls else entering_L[-1:]
    queries_L = torch.cat([entering_L[:-1], last_1])
    one = torch.ones(1, 1, dtype=torch.int64)
    return Work(
        {
            "patch_embedding": one * shape.num_patches,
            "query": queries_L[None],
            "key_value": entering_L[None],
            "attention": (queries_L * entering_L)[None],
            "projection": torch.cat([projected_l, last_1])[None],
            "mlp": torch.cat([left_l, last_1])[None],
            "pooling": last_1[None],
            "head": one,
        }
    )
