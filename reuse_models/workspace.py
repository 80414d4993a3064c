"""Buffers of one pass of compacted inference. Not state: written anew by every layer, kept since fresh memory is slow.

Shapes: F frames of the pass, K of them in a block, N tokens (CLS first), A patches, D width, C channels of a
projection, Q ranks of the corrections of q, k, v side by side, X rows (frame · N + token).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_models.anchors import empty_projected, norm_dtype
from reuse_models.cached_attention import CachedAttention
from reuse_models.frame_order import GROUP_SIZE
from reuse_models.vit import Vit

BLOCK_BYTES = 2**21
"""About a core's own cache: the q, k, v of a block are restored, attended to and forgotten within it."""


class Workspace:
    """Room for passes of up to `num_frames` frames."""

    def __init__(self, vit: Vit, num_ranks: int, num_frames: int) -> None:
        shape, like = vit.shape, vit.position
        tokens = (num_frames, shape.num_tokens)
        self.num_frames = num_frames
        frame_bytes = 3 * shape.num_tokens * shape.width * like.element_size()
        self.block_frames = max(1, min(GROUP_SIZE, BLOCK_BYTES // frame_bytes))
        self.block_KNC = empty_projected(like, self.block_frames, shape, 3)
        self.difference_KND = like.new_empty(self.block_frames, shape.num_tokens, shape.width)
        self.norm_FN = like.new_empty(tokens, dtype=norm_dtype(like))
        self.to_anchor_FN = like.new_empty(tokens, dtype=norm_dtype(like))
        self.importance_FN = like.new_empty(tokens)
        self.attention = CachedAttention(vit)
        # Of two layers each: rows of the layer before are read while those of this one are written.
        self.pre_proj_2FND = [like.new_empty(*tokens, shape.width) for _ in range(2)]
        self.hidden_2XQ = [like.new_empty(num_frames * shape.num_tokens, num_ranks) for _ in range(2)]
        self._stored: dict[tuple[int, int], Tensor] = {}
        self.expects_reuse = [True] * (shape.num_layers - 1)
        """By boundary: most tokens were reused last time, so that it pays to prepare all of them."""

    def stored(self, turn: int, num_rows: int, channels: int) -> Tensor:
        """Return an uninitialised [num_rows, channels], valid until the turn after the next."""
        kept = self._stored.get((turn % 2, channels))
        if kept is None or len(kept) < num_rows:
            like = self.block_KNC
            self._stored[turn % 2, channels] = kept = like.new_empty(num_rows + num_rows // 4, channels)
        return kept[:num_rows]

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        tensors = [
            self.block_KNC,
            self.difference_KND,
            *self.pre_proj_2FND,
            self.norm_FN,
            self.to_anchor_FN,
            self.importance_FN,
            *self.hidden_2XQ,
            *self._stored.values(),
        ]
        return sum(x.untyped_storage().nbytes() for x in tensors)


def as_rows(x_FNC: Tensor) -> Tensor:
    """Return [F, N, C] as rows [F · N, C] without a copy, whatever lies between rows."""
    rows_XC: Tensor = torch.flatten(x_FNC, 0, 1)
    return rows_XC
