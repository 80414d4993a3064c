"""ToMe(r): per frame, merge r pairs of similar tokens in every layer, between attention and MLP.

Shapes: B frames, N tokens entering a layer (prefix first: CLS where there is one, then registers), h heads, d head
width, D width; X tokens of one side.
Source: Token Merging (arXiv:2210.09461), section 3: bipartite soft matching on keys averaged over heads, sizes tracked,
averages and attention weighted by size; CLS is never merged. Ours, where the paper has no such tower: registers are not
merged either, a head that pools weighs tokens by size, and where positions are rotary a merged token stands where the
one that it was merged into stands (keys are compared turned, as attention sees them).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.merging import merge_into, reduced_work, take_tokens
from reuse_models.baselines.original import FrameByFrame
from reuse_models.method import Method, Work
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit


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
        return ToMe(self, vit)


class ToMe(FrameByFrame):
    """Merge by bipartite matching; keeps nothing between frames."""

    def __init__(self, config: ToMeConfig, vit: Vit) -> None:
        super().__init__(vit, merging_work(vit.shape, config.merged_per_layer))
        self.config = config

    def embed(self, frames_B3HW: Tensor) -> Tensor:
        vit = self.vit
        h_BND = vit.embed(frames_B3HW)
        merged, prefix = self.config.merged_per_layer, vit.shape.num_prefix
        token_BN = torch.arange(h_BND.shape[1], device=h_BND.device).expand(len(h_BND), -1)
        tokens = MergedTokens(h_BND, h_BND.new_ones(h_BND.shape[:2]), token_BN)
        for layer in range(vit.shape.num_layers - 1):
            q_BhNd, k_BhNd, v_BhNd = vit.split_heads(vit.qkv(layer, tokens.h_BND), tokens.token_BN)
            pre_proj_BND = vit.attend(q_BhNd, k_BhNd, v_BhNd, tokens.size_BN.log())
            h_BND = vit.project(layer, tokens.h_BND, pre_proj_BND)
            tokens = match_and_merge(replace(tokens, h_BND=h_BND), k_BhNd.mean(1), merged, prefix)
            tokens = replace(tokens, h_BND=vit.mlp(layer, tokens.h_BND))
        return vit.finish_from_input(tokens.h_BND, tokens.size_BN.log(), tokens.token_BN)


@dataclass(frozen=True, slots=True)
class MergedTokens:
    """What is left of a frame's tokens."""

    h_BND: Tensor
    size_BN: Tensor
    """Tokens that each one stands for."""
    token_BN: Tensor
    """int64: where each one stands among the tower's tokens."""


def match_and_merge(tokens: MergedTokens, key_BNd: Tensor, merged: int, prefix: int) -> MergedTokens:
    """Merge the `merged` most similar pairs of a proposing and a receiving token.

    Behind the prefix, which is left alone, tokens propose and receive in turn; those of even place among all propose,
    as in the paper, or of odd place among what is no prefix where that is more than CLS. Each proposes its most similar
    receiver; the best proposals are carried out. The order after it, unmerged proposers and then receivers, decides who
    may meet in the next layer, and is the paper's.

    Args:
        tokens: After attention.
        key_BNd: Their keys, averaged over heads.
        merged: Pairs, at most.
        prefix: The first tokens, never merged.
    """
    merged = num_merged(key_BNd.shape[1], merged, prefix)
    if merged == 0:
        return tokens
    first = prefix + int(prefix > 0)
    second = prefix + int(prefix == 0)
    unit_BNd = F.normalize(key_BNd, dim=-1)
    best_BX = (unit_BNd[:, first::2] @ unit_BNd[:, second::2].mT).max(-1)
    order_BX = best_BX.values.argsort(dim=-1, descending=True)
    merged_Br = order_BX[:, :merged]
    rest_BX = order_BX[:, merged:].sort(dim=1).values
    h_BND, size_BN, token_BN = tokens.h_BND, tokens.size_BN, tokens.token_BN
    proposing_BXD, proposing_size_BX = h_BND[:, first::2], size_BN[:, first::2]
    received_BYD, received_size_BY = merge_into(
        h_BND[:, second::2],
        size_BN[:, second::2],
        take_tokens(proposing_BXD, merged_Br),
        proposing_size_BX.gather(1, merged_Br),
        best_BX.indices.gather(1, merged_Br),
    )
    return MergedTokens(
        torch.cat([h_BND[:, :prefix], take_tokens(proposing_BXD, rest_BX), received_BYD], dim=1),
        torch.cat([size_BN[:, :prefix], proposing_size_BX.gather(1, rest_BX), received_size_BY], dim=1),
        torch.cat([token_BN[:, :prefix], token_BN[:, first::2].gather(1, rest_BX), token_BN[:, second::2]], dim=1),
    )


def num_merged(num_tokens: int, merged: int, prefix: int) -> int:
    """Return how many tokens a layer really loses: no more than half of those behind the prefix can propose."""
    return max(0, min(merged, (num_tokens - prefix) // 2))


def merging_work(shape: VitShape, merged_per_layer: int) -> Work:
    """Return the work of one frame; the last layer runs for CLS alone where there is one."""
    entering, kept, pairs = [], [], []
    tokens = shape.num_tokens
    for _ in range(shape.num_layers - 1):
        merged = num_merged(tokens, merged_per_layer, shape.num_prefix)
        entering.append(tokens)
        patches = tokens - shape.num_prefix
        pairs.append((patches // 2) * ((patches + 1) // 2) if merged else 0)
        tokens -= merged
        kept.append(tokens)
    work = reduced_work(shape, torch.tensor(entering, dtype=torch.int64), torch.tensor(kept, dtype=torch.int64))
    work.parts["key_similarity"] = torch.tensor([[*pairs, 0]])
    return work
