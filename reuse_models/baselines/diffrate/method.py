"""DiffRate: per frame, drop the tokens that CLS attends to least and merge some of the rest, layer by layer.

Where there is no CLS, importance is the mean attention that a token receives. The prefix (CLS and registers) is neither
dropped nor merged into; where positions are rotary, a kept token stays where it stands.

Shapes: B frames, N tokens entering a layer (prefix first), p kept after pruning, m kept after merging (both with the
prefix), h heads, D width.
Source: docs/methods.md; DiffRate (arXiv:2305.17997) with the fixed schedule and plain averaging of the artifact. With
`size_aware` as in its own paper: a merged token weighs as many tokens as it holds, in averages and in attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.merging import merge_into, reduced_work, take_tokens
from reuse_models.baselines.original import FrameByFrame
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.method import Method, Work
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

BEYOND_ATTENTION = 1e30
"""More than any importance; torch's order of equal numbers, such as infinities, is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffRateConfig:
    """Keep a fixed number of tokens per layer."""

    method: ClassVar[str] = "diffrate"
    prune_kept: tuple[int, ...]
    """Tokens kept after pruning in each layer, the prefix counted; the last layer's number changes nothing."""
    merge_kept: tuple[int, ...]
    """Tokens kept after merging in each layer, the prefix counted: at most those kept after pruning."""
    size_aware: bool = False
    """Weigh a merged token by the tokens it holds, as DiffRate's own paper does and the artifact does not."""
    label: str = ""
    """A short name of the schedule for tables, such as `f=38.5`; the schedule itself where there is none."""

    def __post_init__(self) -> None:
        if len(self.prune_kept) != len(self.merge_kept) or not self.prune_kept:
            raise ValueError(
                f"schedule: got {len(self.prune_kept)} and {len(self.merge_kept)} layers, expected one number a layer "
                "in both; take a schedule of this tower"
            )
        entering = self.prune_kept[0]
        for layer, (pruned, merged) in enumerate(zip(self.prune_kept, self.merge_kept, strict=True)):
            if not 1 <= merged <= pruned <= entering or (merged == 1 and pruned > 1):
                raise ValueError(
                    f"schedule of layer {layer}: got {pruned} kept and {merged} after merging of {entering}, expected "
                    "numbers that never grow, and 2 or more where there is something to merge; correct the schedule"
                )
            entering = merged

    @property
    def setting(self) -> str:
        numbers = zip(self.prune_kept, self.merge_kept, strict=True)
        name = self.label or "kept=" + ",".join(f"{pruned}>{merged}" for pruned, merged in numbers)
        return name + (" sized" if self.size_aware else "")

    def build(self, vit: Vit) -> Method:
        if len(self.prune_kept) != vit.shape.num_layers or self.prune_kept[0] > vit.shape.num_tokens:
            raise ValueError(
                f"schedule: got {len(self.prune_kept)} layers from {self.prune_kept[0]} tokens, expected "
                f"{vit.shape.num_layers} layers and at most {vit.shape.num_tokens} tokens; "
                "take a schedule of this tower"
            )
        prefix, last = vit.shape.num_prefix, vit.shape.num_layers - 1
        for layer, (pruned, merged) in enumerate(zip(self.prune_kept[:last], self.merge_kept[:last], strict=True)):
            if merged < prefix or (merged == prefix and pruned > merged):
                raise ValueError(
                    f"schedule of layer {layer}: got {pruned} kept and {merged} after merging, expected at least the "
                    f"{prefix} tokens of CLS and registers, and one more where there is something to merge; take a "
                    "schedule of this tower"
                )
        return DiffRate(self, vit)


class DiffRate(FrameByFrame):
    """Prune and merge by a fixed schedule; keeps nothing between frames."""

    def __init__(self, config: DiffRateConfig, vit: Vit) -> None:
        super().__init__(vit, schedule_work(vit.shape, config.prune_kept, config.merge_kept))
        self.config = config

    def embed(self, frames_B3HW: Tensor) -> Tensor:
        vit, last = self.vit, self.vit.shape.num_layers - 1
        prefix = vit.shape.num_prefix
        h_BND = vit.embed(frames_B3HW)
        size_BN = h_BND.new_ones(h_BND.shape[:2])
        token_BN = torch.arange(h_BND.shape[1], device=h_BND.device).expand(len(h_BND), -1)
        for layer in range(last):
            bias_BN = size_BN.log() if self.config.size_aware else None
            q_BhNd, k_BhNd, v_BhNd = vit.split_heads(vit.qkv(layer, h_BND), token_BN)
            pre_proj_BND = vit.attend(q_BhNd, k_BhNd, v_BhNd, bias_BN)
            importance_BN = rank_prefix_first(vit.importance(q_BhNd, k_BhNd, bias_BN), prefix)
            # Dropped tokens are dropped before the projection: nothing reads it. The most important come first.
            kept_Bp = importance_BN.topk(self.config.prune_kept[layer], dim=1).indices
            h_BpD = vit.project(layer, take_tokens(h_BND, kept_Bp), take_tokens(pre_proj_BND, kept_Bp))
            kept = self.config.merge_kept[layer]
            h_BND, size_BN = self._merge(h_BpD, size_BN.gather(1, kept_Bp), kept)
            token_BN = token_BN.gather(1, kept_Bp)[:, :kept]
            h_BND = vit.mlp(layer, h_BND)
        bias_BN = size_BN.log() if self.config.size_aware else None
        return vit.finish_from_input(h_BND, bias_BN, token_BN)

    def _merge(self, h_BpD: Tensor, size_Bp: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Average each token beyond the first `kept` into the most similar of those, never the prefix."""
        if kept == h_BpD.shape[1]:
            return h_BpD, size_Bp
        prefix = self.vit.shape.num_prefix
        unit_BpD = F.normalize(h_BpD, dim=-1)
        similarity_BXm = unit_BpD[:, kept:] @ unit_BpD[:, prefix:kept].mT
        into_BX = similarity_BXm.argmax(-1) + prefix
        if not self.config.size_aware:
            size_Bp = torch.ones_like(size_Bp)
        return merge_into(h_BpD[:, :kept], size_Bp[:, :kept], h_BpD[:, kept:], size_Bp[:, kept:], into_BX)


def rank_prefix_first(importance_BN: Tensor, prefix: int) -> Tensor:
    """Make the first `prefix` tokens the most important ones, in their order, in place; return the same tensor."""
    importance_BN[:, :prefix] = torch.arange(prefix, 0, -1, device=importance_BN.device) * BEYOND_ATTENTION
    return importance_BN


def schedule_work(shape: VitShape, prune_kept: Sequence[int], merge_kept: Sequence[int]) -> Work:
    """Return the work of one frame under a schedule; the last layer runs for CLS alone where there is one."""
    last = shape.num_layers - 1
    return relaxed_work(shape, torch.tensor(prune_kept[:last]), torch.tensor(merge_kept[:last]))


def relaxed_work(shape: VitShape, pruned_l: Tensor, merged_l: Tensor) -> Work:
    """Return the work of one frame from the [L - 1] tokens kept after pruning, and after merging."""
    work = reduced_work(shape, pruned_l, merged_l)
    entering_l = work.parts["key_value"][0, :-1]
    # In the last layer nothing is ranked or merged.
    work.parts["importance"] = F.pad(entering_l * (1 if shape.has_cls else entering_l), (0, 1))[None]
    work.parts["similarity"] = F.pad((pruned_l - merged_l) * (merged_l - shape.num_prefix), (0, 1))[None]
    return work


def fewest_kept(shape: VitShape) -> int:
    """Return the fewest tokens that a layer may keep: the prefix and a patch, and two where something may merge."""
    return max(2, shape.num_prefix + 1)


def uniform_schedule(shape: VitShape, flops_share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (prune_kept, merge_kept) that costs at most a share of dense, keeping the same fraction in every layer.

    Half of what a layer removes is pruned, half merged. Nothing is learned: it gives a setting on any tower, not the
    best one at its cost.

    Args:
        shape: Of the tower.
        flops_share: FLOPs as a share of `dense_flops`, above what keeping one patch costs and up to 1.

    Raises:
        ValueError: The share is out of that range.
    """
    allowed = flops_share * dense_flops(shape)
    low, high = 0.0, 1.0
    if not _cost(shape, low) <= allowed or flops_share > 1:
        raise ValueError(
            f"flops_share: got {flops_share}, expected {_cost(shape, low) / dense_flops(shape):.3f}..1 on this tower; "
            "choose a share in that range"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(shape, middle) <= allowed else (low, middle)
    return _uniform(shape, low)


def _uniform(shape: VitShape, kept_rate: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    merge_kept = [
        max(fewest_kept(shape), round(shape.num_tokens * kept_rate ** (layer + 1))) for layer in range(shape.num_layers)
    ]
    entering = [shape.num_tokens, *merge_kept[:-1]]
    prune_kept = [before - (before - after) // 2 for before, after in zip(entering, merge_kept, strict=True)]
    return tuple(prune_kept), tuple(merge_kept)


def _cost(shape: VitShape, kept_rate: float) -> float:
    return float(flops_per_frame(shape, schedule_work(shape, *_uniform(shape, kept_rate)))[0])
