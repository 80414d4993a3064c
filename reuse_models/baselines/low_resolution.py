"""LowResolution(px): the same tower on smaller frames. What every token method has to beat.

A frame is scaled down from what the tower would see of it, antialiased; positions are interpolated as the tower's own
family does it.

Shapes: B frames of all streams, E embedding width.
Source: docs/methods.md; plain downsampling beside token reduction (arXiv:2510.07143).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.original import FrameByFrame
from reuse_models.flops import dense_work
from reuse_models.method import Method
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class LowResolutionConfig:
    """Compute every token of smaller frames."""

    method: ClassVar[str] = "low_resolution"
    image_px: int = 112
    """Side of the frames that are computed: whole patches, fewer a side than the tower's own."""

    def __post_init__(self) -> None:
        if self.image_px < 1:
            raise ValueError(f"image_px: got {self.image_px}, expected 1 or more; give whole patches")

    @property
    def setting(self) -> str:
        return f"px={self.image_px}"

    def build(self, vit: Vit) -> Method:
        patch_px, most = vit.shape.patch_px, (vit.shape.patches_per_side - 1) * vit.shape.patch_px
        if not most:
            raise ValueError("image_px: got a tower of one patch, expected two a side or more; choose another backbone")
        if self.image_px % patch_px or self.image_px > most:
            raise ValueError(
                f"image_px: got {self.image_px}, expected whole patches of {patch_px} px, "
                f"{patch_px}..{most} on this tower; choose one"
            )
        return LowResolution(self, vit)


class LowResolution(FrameByFrame):
    """The dense tower on fewer patches."""

    def __init__(self, config: LowResolutionConfig, vit: Vit) -> None:
        self.small_vit = vit.at_size(config.image_px)
        super().__init__(vit, dense_work(self.small_vit.shape))

    def embed(self, frames_B3HW: Tensor) -> Tensor:
        # Pixels beyond the last whole patch are left out first, as the tower does: positions stay where they belong.
        seen_px, image_px = self.vit.shape.patches_per_side * self.vit.shape.patch_px, self.small_vit.shape.image_px
        small_B3HW = F.interpolate(
            frames_B3HW[:, :, :seen_px, :seen_px], (image_px, image_px), mode="bicubic", antialias=True
        )
        embedding_BE: Tensor = self.small_vit(small_B3HW)
        return embedding_BE
