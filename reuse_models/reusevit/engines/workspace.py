"""Buffers of one pass of compacted inference, and the attention that works in them (`CachedAttention`).

They are not state: written anew by every layer, kept since fresh memory is slow.

Shapes: F frames of the pass, K of them in a block, N tokens (prefix first), A patches, D width, C channels of a
projection, Q ranks of the corrections of q, k, v side by side, X rows (frame · N + token), h heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.reusevit.anchors import empty_projected
from reuse_models.reusevit.engines.token_memory import cosine_dtype
from reuse_models.tower.attention import parts_in_cache, prefers_products, probabilities
from reuse_models.tower.vit import Vit

ROWS_PER_PRODUCT = 1024
"""Tokens that go through a layer's products at once: enough for full speed, few enough for buffers to stay warm."""
BLOCK_BYTES = 2**21
"""About a core's own cache: the q, k, v of a block are restored, attended to and forgotten within it."""
SMALLEST_SUM, LARGEST_SUM = 1e-30, 1e30
FEWEST_SCORES = 2**18
"""Of a frame: below, one call for several frames is faster."""


class CachedAttention:
    """Attention of one frame at a time on a CPU, its scores kept in cache, importance read off on the way.

    Scores of attention are small numbers: exp is taken without the shift by each row's maximum that a softmax makes
    first, and the outputs, fewer than the scores, are divided by the sums. Where a sum leaves the range of the type the
    frame is handed to the ordinary attention. In bfloat16, where plain products are faster, they go the way of
    `tower/attention.py`, and importance is read off as well.
    """

    def __init__(self, vit: Vit) -> None:
        shape = vit.shape
        self.vit, self._scale = vit, shape.head_dim**-0.5
        scores = (shape.num_heads, shape.num_tokens, shape.num_tokens)
        on_cpu = vit.position.device.type == "cpu" and vit.position.dtype in (torch.float32, torch.float64)
        self.is_used = on_cpu and shape.num_heads * shape.num_tokens**2 >= FEWEST_SCORES
        if self.is_used:
            self._scores_hNN = vit.position.new_empty(scores)
            self._sum_hN1 = vit.position.new_empty(*scores[:2], 1)
            self._attended_hNd = vit.position.new_empty(*scores[:2], shape.head_dim)
            # What is read off for CLS, which comes first.
            self._cls_scores_hN, self._cls_sum_h1 = self._scores_hNN[:, 0], self._sum_hN1[:, 0]
            self._cls_hN = torch.empty_like(self._cls_scores_hN)

    def __call__(self, projected_KNC: Tensor, pre_proj_KND: Tensor, importance_KN: Tensor) -> Tensor | int:
        """Write pre_proj and importance of a block from its q, k, v.

        Returns:
            Query-key pairs beyond those of attention, for importance or given up: [K], or one number for every frame.
        """
        q_KhNd, k_KhNd, v_KhNd = self.vit.split_heads(projected_KNC)
        out_KhNd = pre_proj_KND.unflatten(2, q_KhNd.shape[1::2]).transpose(1, 2)
        if prefers_products(q_KhNd):
            importance_KN.zero_()
            for some in parts_in_cache(q_KhNd, k_KhNd):
                probability_KhNN = probabilities(q_KhNd[some], k_KhNd[some])
                out_KhNd[some] = probability_KhNN @ v_KhNd[some]
                importance_KN[some[0]] += (
                    probability_KhNN[:, :, 0].sum(1) if self.vit.shape.has_cls else probability_KhNN.sum(1).mean(1)
                )
            return 0
        if not self.is_used:
            return self._ordinary(q_KhNd, k_KhNd, v_KhNd, out_KhNd, importance_KN)
        in_range = list(map(self._one, q_KhNd, k_KhNd.mT, v_KhNd, out_KhNd, importance_KN))
        if all(in_range):
            return 0
        pairs_K = torch.zeros(len(in_range), dtype=torch.int64)
        for frame in (index for index, fits in enumerate(in_range) if not fits):
            own = (x[frame : frame + 1] for x in (q_KhNd, k_KhNd, v_KhNd, out_KhNd, importance_KN))
            pairs_K[frame] = self.vit.shape.num_tokens**2 + self._ordinary(*own)
        return pairs_K

    def _ordinary(self, q_KhNd: Tensor, k_KhNd: Tensor, v_KhNd: Tensor, out_KhNd: Tensor, importance_KN: Tensor) -> int:
        out_KhNd.copy_(F.scaled_dot_product_attention(q_KhNd, k_KhNd, v_KhNd))
        importance_KN.copy_(self.vit.importance(q_KhNd, k_KhNd))
        return self.vit.shape.num_tokens * self.vit.shape.num_last_queries

    def _one(self, q_hNd: Tensor, k_hdN: Tensor, v_hNd: Tensor, out_hNd: Tensor, importance_N: Tensor) -> bool:
        scores_hNN, sum_hN1 = self._scores_hNN, self._sum_hN1
        torch.baddbmm(scores_hNN, q_hNd, k_hdN, beta=0, alpha=self._scale, out=scores_hNN)
        scores_hNN.exp_()
        torch.sum(scores_hNN, -1, keepdim=True, out=sum_hN1)
        smallest, largest = torch.aminmax(sum_hN1)
        if not (float(smallest) > SMALLEST_SUM and float(largest) < LARGEST_SUM):
            return False
        if not self.vit.shape.has_cls:
            torch.bmm(scores_hNN.div_(sum_hN1), v_hNd, out=self._attended_hNd)
            out_hNd.copy_(self._attended_hNd)
            torch.sum(scores_hNN, (0, 1), out=importance_N)
            importance_N.div_(len(importance_N))
            return True
        torch.bmm(scores_hNN, v_hNd, out=self._attended_hNd)
        torch.div(self._attended_hNd, sum_hN1, out=out_hNd)
        torch.div(self._cls_scores_hN, self._cls_sum_h1, out=self._cls_hN)
        torch.sum(self._cls_hN, 0, out=importance_N)
        return True


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
        tensors = [x for x in vars(self).values() if isinstance(x, Tensor)]
        tensors += [*self.pre_proj_2FND, *self.hidden_2XQ, *self._room, *self._stored.values()]
        return sum(x.untyped_storage().nbytes() for x in tensors)


def as_rows(x_FNC: Tensor) -> Tensor:
    """Return [F, N, C] as rows [F · N, C] without a copy, whatever lies between rows."""
    rows_XC: Tensor = torch.flatten(x_FNC, 0, 1)
    return rows_XC
