"""A frozen vision tower cut at its joints."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class VitShape:
    """Sizes of a tower. `embed_dim` is the projection's width, or `width` where there is no projection."""

    image_px: int
    patch_px: int
    width: int
    num_heads: int
    num_layers: int
    mlp_width: int
    embed_dim: int
    has_cls: bool

    @property
    def patches_per_side(self) -> int:
        """P."""
        return self.image_px // self.patch_px

    @property
    def num_tokens(self) -> int:
        """N: P * P patches, and CLS where there is one."""
        return self.patches_per_side**2 + int(self.has_cls)


class Vit(nn.Module):
    """Placeholder for the contract; see the engine."""

    shape: VitShape
