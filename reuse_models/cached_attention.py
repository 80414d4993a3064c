"""Attention of one frame at a time on a CPU, its scores kept in cache, importance read off on the way.

Scores of attention are small numbers: exp is taken without the shift by each row's maximum that a softmax makes first,
and the outputs, fewer than the scores, are divided by the sums. Where a sum leaves the range of the type the block is
handed to the ordinary attention.

Shapes: K frames, h heads, N tokens (CLS first), d head width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_models.vit import Vit

SMALLEST_SUM, LARGEST_SUM = 1e-30, 1e30
FEWEST_SCORES = 2**18
"""Of a frame: below, one call for several frames is faster."""


class CachedAttention:
    """A buffer for one frame's scores, and the attention that uses it."""

    def __init__(self, vit: Vit) -> None:
        shape = vit.shape
        self.vit = vit
        scores = (shape.num_heads, shape.num_tokens, shape.num_tokens)
        on_cpu = vit.position.device.type == "cpu" and vit.position.dtype in (torch.float32, torch.float64)
        self.is_used = on_cpu and shape.has_cls and shape.num_heads * shape.num_tokens**2 >= FEWEST_SCORES
        self._scores_hNN = vit.position.new_empty(scores) if self.is_used else vit.position.new_empty(0)
        self._sum_hN1 = vit.position.new_empty(*scores[:2], 1) if self.is_used else self._scores_hNN

    def __call__(self, projected_KNC: Tensor, pre_proj_KND: Tensor, importance_KN: Tensor) -> bool:
        """Write pre_proj and importance of a block; return whether importance took a product of its own."""
        q_KhNd, k_KhNd, v_KhNd = self.vit.split_heads(projected_KNC)
        if self.is_used:
            done = [
                self._one(q_KhNd[frame], k_KhNd[frame], v_KhNd[frame], pre_proj_KND[frame], importance_KN[frame])
                for frame in range(len(q_KhNd))
            ]
            if all(done):
                return False
        pre_proj_KND.copy_(self.vit.attend(q_KhNd, k_KhNd, v_KhNd))
        importance_KN.copy_(self.vit.importance(q_KhNd, k_KhNd))
        return True

    def _one(self, q_hNd: Tensor, k_hNd: Tensor, v_hNd: Tensor, out_ND: Tensor, importance_N: Tensor) -> bool:
        shape, scores_hNN, sum_hN1 = self.vit.shape, self._scores_hNN, self._sum_hN1
        torch.baddbmm(scores_hNN, q_hNd, k_hNd.mT, beta=0, alpha=shape.head_dim**-0.5, out=scores_hNN)
        scores_hNN.exp_()
        torch.sum(scores_hNN, -1, keepdim=True, out=sum_hN1)
        if not (float(sum_hN1.min()) > SMALLEST_SUM and float(sum_hN1.max()) < LARGEST_SUM):
            return False
        out_hNd = out_ND.view(shape.num_tokens, shape.num_heads, shape.head_dim).transpose(0, 1)
        torch.bmm(scores_hNN, v_hNd, out=out_hNd)
        out_hNd.div_(sum_hN1)
        torch.sum(scores_hNN[:, 0] / sum_hN1[:, 0], 0, out=importance_N)
        return True
