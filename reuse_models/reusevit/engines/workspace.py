"""Buffers of one pass of compacted inference. Not state: written anew by every layer, kept since fresh memory is slow.

Shapes: F frames of the pass, K of them in a block, N tokens (prefix first), A patches, D width, C channels of a
projection, Q ranks of the corrections of q, k, v side by side, X rows (frame · N + token).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_models.reusevit.anchors import empty_projected
from reuse_models.reusevit.engines.cached_attention import CachedAttention
from reuse_models.reusevit.engines.similarity import cosine_dtype
from reuse_models.tower.vit import Vit

ROWS_PER_PRODUCT = 1024
"""Tokens that go through a layer's products at once: enough for full speed, few enough for buffers to stay warm."""
BLOCK_BYTES = 2**21
"""About a core's own cache: the q, k, v of a block are restored, attended to and forgotten within it."""


class Workspace:
    """Room for passes of up to `num_frames` frames."""

    def __init__(self, vit: Vit, num_ranks: int, num_frames: int) -> None:
        shape, like = vit.shape, vit.position
        tokens = (num_frames, shape.num_tokens)
        self.num_frames = num_frames
        frame_bytes = 3 * shape.num_tokens * shape.width * like.element_size()
        self.block_frames = max(1, min(num_frames, BLOCK_BYTES // frame_bytes))
        self.block_KNC = empty_projected(like, self.block_frames, shape, 3)
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self.difference_KND = like.new_empty(self.block_frames, shape.num_tokens, shape.width)
        self.norm_FN = like.new_empty(tokens, dtype=cosine_dtype(like))
        self.difference_norm_FN = torch.empty_like(self.norm_FN)
        self.to_anchor_FN = torch.empty_like(self.norm_FN)
        self.importance_FN = like.new_empty(tokens)
        self.attention = CachedAttention(vit)
        # Of two layers each: rows of the layer before are read while those of this one are written.
        self.pre_proj_2FND = [like.new_empty(*tokens, shape.width) for _ in range(2)]
        self.hidden_2XQ = [like.new_empty(num_frames * shape.num_tokens, num_ranks) for _ in range(2)]
        rows = min(ROWS_PER_PRODUCT, num_frames * shape.num_tokens)
        self._room = [like.new_empty(rows, channels) for channels in (shape.width, shape.width, shape.fc1_width)]
        self._stored: dict[tuple[int, int], Tensor] = {}
        self.expects_reuse = [True] * (shape.num_layers - 1)
        """By boundary: most tokens were reused last time, so that it pays to prepare all of them."""

    def block(self, num_frames: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block as [K, N, C], as [X, C] and as [p, X, D], p parts of q, k, v; one memory for all."""
        views = self._views.get((num_frames, parts))
        if views is None:
            width = self.pre_proj_2FND[0].shape[-1]
            block_KNC = self.block_KNC[:num_frames, :, : parts * width]
            block_XC = as_rows(block_KNC)
            views = block_KNC, block_XC, block_XC.unflatten(1, (parts, width)).transpose(0, 1)
            self._views[num_frames, parts] = views
        return views

    def room(self, num_rows: int) -> list[Tensor]:
        """Return room for h, pre_proj and the MLP's hidden units of a product of up to ROWS_PER_PRODUCT rows."""
        return [x[:num_rows] for x in self._room]

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
        tensors = [x for x in vars(self).values() if isinstance(x, Tensor)]
        tensors += [*self.pre_proj_2FND, *self.hidden_2XQ, *self._room, *self._stored.values()]
        return sum(x.untyped_storage().nbytes() for x in tensors)


def as_rows(x_FNC: Tensor) -> Tensor:
    """Return [F, N, C] as rows [F · N, C] without a copy, whatever lies between rows."""
    rows_XC: Tensor = torch.flatten(x_FNC, 0, 1)
    return rows_XC
