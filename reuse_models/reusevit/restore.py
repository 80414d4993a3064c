"""Restoration: what a reused patch's h, q, k and v lack, read off the change of its attention output.

Shapes: X leading dimensions, D width, R rank; the four corrections are h, q, k, v in this order.
Source: paper, section on the restoration layer; docs/methods.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CORRECTED = ("h", "q", "k", "v")


class Restoration(nn.Module):
    """One boundary's four bias-free MLPs, D -> R -> D, their first layers as one product; rank 0 corrects nothing."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down_QD = nn.Parameter(torch.empty(len(CORRECTED) * rank, width))
        # Nothing is corrected until something is learned (ours; the artifact starts at random).
        self.up_4DR = nn.Parameter(torch.zeros(len(CORRECTED), width, rank))
        if rank:
            nn.init.kaiming_uniform_(self.down_QD, a=5**0.5)

    def forward(self, difference_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Return corrections of h, [X, D], and of q, k, v side by side, from pre_proj minus the reference's."""
        if not self.rank:
            h_XD = torch.zeros_like(difference_XD)
            return h_XD, h_XD.repeat_interleave(len(CORRECTED) - 1, dim=-1)
        hidden = torch.split(F.relu(F.linear(difference_XD, self.down_QD)), self.rank, dim=-1)
        h_XD, *qkv = (F.linear(one, up_DR) for one, up_DR in zip(hidden, self.up_4DR, strict=True))
        return h_XD, torch.cat(qkv, dim=-1)
