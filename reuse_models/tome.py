"""ToMe(r): per frame, merge r pairs of similar tokens in every layer, between attention and MLP.

Shapes: B frames, N tokens entering a layer (CLS first), h heads, d head width, D width; X tokens of one side.
Source: Token Merging (arXiv:2210.09461), section 3: bipartite soft matching on keys averaged over heads, sizes tracked,
averages and attention weighted by size; CLS is never merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.frame_by_frame import FrameByFrame
from reuse_models.merging import merge_into, take_tokens
from reuse_models.method import Method, Work
from reuse_models.vit import Vit, VitShape


@dataclass(frozen=True, kw_only=True, slots=True)
class ToMeConfig:
    """Merge r tokens per layer."""

    method: ClassVar[str] = "tome"
    merged_per_layer: int = 8
    """Tokens that each layer loses, 0 or more; a layer loses at most half of its patches."""

    def __post_init__(self) -> None:
        if self.merged_per_layer < 0:
            raise ValueError(f"merged_per_layer: got {self.merged_per_layer}, expected 0 or more; raise it")

    @property
    def setting(self) -> str:
        return f"r={self.merged_per_layer}"

    def build(self, vit: Vit) -> Method:
        if not vit.shape.has_cls:
            raise ValueError(
                "tome: got a tower without CLS, expected CLIP; its pooling head is not defined for merged "
                "tokens, choose another method"
            )
        return ToMe(self, vit)


class ToMe(FrameByFrame):
    """Merge by bipartite matching; keeps nothing between frames."""

    def __init__(self, config: ToMeConfig, vit: Vit) -> None:
        super().__init__(vit, merging_work(vit.shape, config.merged_per_layer))
        self.config = config

    def embed(self, frames_B3HW: Tensor) -> Tensor:
        vit = self.vit
        h_BND = vit.embed(frames_B3HW)
        size_BN = h_BND.new_ones(h_BND.shape[:2])
        for layer in range(vit.shape.num_layers - 1):
            q_BhNd, k_BhNd, v_BhNd = vit.split_heads(vit.qkv(layer, h_BND))
            h_BND = vit.project(layer, h_BND, vit.attend(q_BhNd, k_BhNd, v_BhNd, size_BN.log()))
            h_BND, size_BN = match_and_merge(h_BND, size_BN, k_BhNd.mean(1), self.config.merged_per_layer)
            h_BND = vit.mlp(layer, h_BND)
        return vit.finish_from_input(h_BND, size_BN.log())


def match_and_merge(h_BND: Tensor, size_BN: Tensor, key_BNd: Tensor, merged: int) -> tuple[Tensor, Tensor]:
    """Merge the `merged` most similar pairs of an even-numbered and an odd-numbered token; return tokens and sizes.

    Every even token proposes its most similar odd one; the best proposals are carried out. The order after it, the
    unmerged even tokens and then the odd ones, decides who may meet in the next layer, and is the paper's.
    """
    merged = num_merged(h_BND.shape[1], merged)
    if merged == 0:
        return h_BND, size_BN
    unit_BNd = F.normalize(key_BNd, dim=-1)
    similarity_BXY = unit_BNd[:, ::2] @ unit_BNd[:, 1::2].mT
    similarity_BXY[:, 0] = -torch.inf  # CLS proposes to nobody; being even, nobody proposes to it
    best_BX = similarity_BXY.max(-1)
    order_BX = best_BX.values.argsort(dim=-1, descending=True)
    merged_Br = order_BX[:, :merged]
    rest_BX = order_BX[:, merged:].sort(dim=1).values
    even_BXD, even_size_BX = h_BND[:, ::2], size_BN[:, ::2]
    odd_BYD, odd_size_BY = merge_into(
        h_BND[:, 1::2],
        size_BN[:, 1::2],
        take_tokens(even_BXD, merged_Br),
        even_size_BX.gather(1, merged_Br),
        best_BX.indices.gather(1, merged_Br),
    )
    return (
        torch.cat([take_tokens(even_BXD, rest_BX), odd_BYD], dim=1),
        torch.cat([even_size_BX.gather(1, rest_BX), odd_size_BY], dim=1),
    )


def num_merged(num_tokens: int, merged: int) -> int:
    """Return how many tokens a layer really loses: no more than half of its patches can propose."""
    return min(merged, (num_tokens - 1) // 2)


def merging_work(shape: VitShape, merged_per_layer: int) -> Work:
    """Return the work of one frame; the last layer runs for CLS alone."""
    entering, kept, pairs = [], [], []
    tokens = shape.num_tokens
    for _ in range(shape.num_layers - 1):
        merged = num_merged(tokens, merged_per_layer)
        entering.append(tokens)
        pairs.append(((tokens + 1) // 2) * (tokens // 2) if merged else 0)
        tokens -= merged
        kept.append(tokens)
    keys = torch.tensor([*entering, tokens])
    queries = torch.tensor([*entering, 1])
    one = torch.ones(1, 1, dtype=torch.int64)
    return Work(
        {
            "patch_embedding": one,
            "query": queries[None],
            "key_value": keys[None],
            "attention": (queries * keys)[None],
            "projection": queries[None],
            "key_similarity": torch.tensor([[*pairs, 0]]),
            "mlp": torch.tensor([[*kept, 1]]),
            "head": one,
        }
    )
