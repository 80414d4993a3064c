"""Eventful(k): per frame and boundary, compute the k tokens that moved furthest since they were last computed.

Shapes: S streams at a step, A patches, which alone may be reused, D width.
Source: docs/methods.md; Eventful Transformers (arXiv:2308.13494) with the one gate that the artifact gives it. The
method of its own paper, with three gates and attention-value deltas, is `eventful_full`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reuse_models.baselines.token_cache import TokenCache
from reuse_models.method import Method
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class EventfulConfig:
    """Refresh the tokens that changed most since they were last computed."""

    method: ClassVar[str] = "eventful"
    refreshed_tokens: int = 64
    """Patches computed per boundary and frame beside the prefix: 0..patches."""

    def __post_init__(self) -> None:
        if self.refreshed_tokens < 0:
            raise ValueError(f"refreshed_tokens: got {self.refreshed_tokens}, expected 0 or more; raise it")

    @property
    def setting(self) -> str:
        return f"k={self.refreshed_tokens}"

    def build(self, vit: Vit) -> Method:
        check_refreshed_tokens(self.refreshed_tokens, vit)
        return TokenCache(vit, self.furthest)

    def furthest(self, pre_proj_SAD: Tensor, anchor_SAD: Tensor) -> Tensor:
        """Return bool [S, A]: what is to be computed, by L2 distance."""
        distance_SA = torch.linalg.vector_norm(pre_proj_SAD - anchor_SAD, dim=-1)
        furthest_SK = distance_SA.topk(self.refreshed_tokens, dim=1, sorted=False).indices
        return torch.zeros_like(distance_SA, dtype=torch.bool).scatter_(1, furthest_SK, value=True)


def check_refreshed_tokens(refreshed_tokens: int, vit: Vit) -> None:
    """Refuse, by a ValueError, more tokens than the tower has patches, which alone may be reused."""
    if refreshed_tokens > vit.shape.num_patches:
        raise ValueError(
            f"refreshed_tokens: got {refreshed_tokens}, expected 0..{vit.shape.num_patches} on this tower; lower it"
        )
