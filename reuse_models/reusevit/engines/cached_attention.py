"""Attention of one frame at a time on a CPU, its scores kept in cache, importance read off on the way.

Scores of attention are small numbers: exp is taken without the shift by each row's maximum that a softmax makes first,
and the outputs, fewer than the scores, are divided by the sums. Where a sum leaves the range of the type the block is
handed to the ordinary attention. In bfloat16, where plain products are faster, they go the way of `tower/attention.py`,
and importance is read off as well.

Shapes: K frames, h heads, N tokens (prefix first), d head width, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.tower.attention import parts_in_cache, prefers_products, probabilities
from reuse_models.tower.vit import Vit

SMALLEST_SUM, LARGEST_SUM = 1e-30, 1e30
FEWEST_SCORES = 2**18
"""Of a frame: below, one call for several frames is faster."""


class CachedAttention:
    """A buffer for one frame's scores, and the attention that uses it."""

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

    def __call__(self, projected_KNC: Tensor, pre_proj_KND: Tensor, importance_KN: Tensor) -> bool:
        """Write pre_proj and importance of a block from its q, k, v; return whether importance took a product."""
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
            return False
        if self.is_used and all(map(self._one, q_KhNd, k_KhNd.mT, v_KhNd, out_KhNd, importance_KN)):
            return False
        out_KhNd.copy_(F.scaled_dot_product_attention(q_KhNd, k_KhNd, v_KhNd))
        importance_KN.copy_(self.vit.importance(q_KhNd, k_KhNd))
        return True

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
