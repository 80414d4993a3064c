"""Merging tokens of a frame: what DiffRate and ToMe share.

Shapes: B frames, N tokens, X of them chosen, m kept, D width.
"""

from __future__ import annotations

from torch import Tensor


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
