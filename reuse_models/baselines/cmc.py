"""CMC(t): a token is reused while its attention output stays within t of what it was when last computed.

Shapes: S streams at a step, F frames of a clip, A patches, which alone may be reused, D width.
Source: docs/methods.md; CMC (ASPLOS 2024) as the Déjà Vu artifact runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reuse_models.baselines.token_cache import TokenCache
from reuse_models.method import Method
from reuse_models.streams import FRAMES_PER_BATCH
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class CmcConfig:
    """Reuse tokens whose distance to what was last computed is below a threshold."""

    method: ClassVar[str] = "cmc"
    threshold: float = 15.0
    """Sum of absolute differences of pre_proj over its D channels; grows with the tower's width, so that a setting
    belongs to one backbone: see `distance_quantiles`."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: got {self.threshold}, expected 0 or more; 0 reuses nothing")

    @property
    def setting(self) -> str:
        return f"t={self.threshold:g}"

    def build(self, vit: Vit) -> Method:
        return TokenCache(vit, self.moved)

    def moved(self, pre_proj_SAD: Tensor, anchor_SAD: Tensor) -> Tensor:
        """Return bool [S, A]: what is to be computed."""
        # Not "at least t": a distance that is not a number must be computed.
        return ~(absolute_difference(pre_proj_SAD, anchor_SAD) < self.threshold)


def absolute_difference(a_XD: Tensor, b_XD: Tensor) -> Tensor:
    """Return [X]: the sum of absolute differences over channels."""
    return (a_XD - b_XD).abs_().sum(-1)


@torch.no_grad()
def distance_quantiles(vit: Vit, clips_F3HW: Iterable[Tensor], quantiles: Sequence[float]) -> list[float]:
    """Return quantiles of CMC's distance between consecutive frames of dense clips, over all boundaries and tokens.

    A threshold at quantile p reuses about a share p of the tokens from the frame before; less over longer chains, since
    a reused token keeps its older anchor. This is how a sweep finds its thresholds on any backbone.

    Raises:
        ValueError: No clip has two frames, a quantile is outside 0..1, or a frame does not fit the tower.
    """
    if not all(0 <= share <= 1 for share in quantiles):
        raise ValueError(f"quantiles: got {list(quantiles)}, expected shares in 0..1; divide percentages by 100")
    distances: list[Tensor] = []
    for pixels_F3HW in clips_F3HW:
        vit.check_pixels(pixels_F3HW)
        distances += _consecutive_distances(vit, pixels_F3HW)
    if not distances:
        raise ValueError("clips: got none of two frames or more, expected at least one; pass longer clips")
    # Not torch.quantile, which refuses more than 16 million values.
    ordered = torch.cat(distances).sort().values
    return [float(ordered[min(math.floor(share * len(ordered)), len(ordered) - 1)]) for share in quantiles]


def _consecutive_distances(vit: Vit, pixels_F3HW: Tensor) -> list[Tensor]:
    before: dict[int, Tensor] = {}
    distances: list[Tensor] = []
    for some_F3HW in pixels_F3HW.split(FRAMES_PER_BATCH):
        h_FND = vit.embed(some_F3HW)
        for layer in range(vit.shape.num_layers - 1):
            pre_proj_FND = vit.attend(*vit.split_heads(vit.qkv(layer, h_FND)))
            now_FAD = pre_proj_FND[:, vit.shape.num_prefix :].float()
            row_FAD = torch.cat([before[layer], now_FAD]) if layer in before else now_FAD
            distances.append(absolute_difference(row_FAD[1:], row_FAD[:-1]).flatten())
            before[layer] = now_FAD[-1:].clone()
            h_FND = vit.close(layer, h_FND, pre_proj_FND)
    return distances
