"""Sizes of a vision tower, and those of towers that are published.

Shapes: N tokens (CLS first where there is one), P patches a side, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("quick_gelu", "gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True, kw_only=True, slots=True)
class VitShape:
    """Sizes of a tower. `embed_dim` is the projection's width, or `width` where there is no projection.

    A tower with CLS is CLIP's: normalised before the first layer, its embedding is CLS, normalised and projected.
    One without is SigLIP's: its embedding is pooled from all tokens by one attention layer.
    """

    image_px: int
    patch_px: int
    width: int
    num_heads: int
    num_layers: int
    mlp_width: int
    embed_dim: int
    has_cls: bool
    has_projection: bool = True
    """A linear map from width to embed_dim ends the tower. False in SigLIP and in a CLIP tower without projection."""
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(
                f"tower: got width {self.width} and {self.num_heads} heads, expected a multiple; check the config"
            )
        if self.patches_per_side < 1 or self.num_layers < 1:
            raise ValueError(
                f"tower: got {self.image_px} px in patches of {self.patch_px} px and {self.num_layers} layers, "
                "expected at least one of each; check the config"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"tower activation: got {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}; "
                "choose another backbone"
            )
        if not self.has_projection and self.embed_dim != self.width:
            raise ValueError(
                f"tower: got embed_dim {self.embed_dim} without a projection, expected the width {self.width}; "
                "check the config"
            )

    @property
    def patches_per_side(self) -> int:
        """P."""
        return self.image_px // self.patch_px

    @property
    def num_tokens(self) -> int:
        """N: P * P patches, and CLS where there is one."""
        return self.patches_per_side**2 + int(self.has_cls)

    @property
    def num_patches(self) -> int:
        """P * P."""
        return self.patches_per_side**2

    @property
    def head_dim(self) -> int:
        """Width of one head, d."""
        return self.width // self.num_heads


def _clip(image_px: int, patch_px: int, width: int, num_layers: int, embed_dim: int) -> VitShape:
    return VitShape(
        image_px=image_px,
        patch_px=patch_px,
        width=width,
        num_heads=width // 64,
        num_layers=num_layers,
        mlp_width=4 * width,
        embed_dim=embed_dim,
        has_cls=True,
    )


def _siglip(image_px: int, patch_px: int, width: int, num_layers: int) -> VitShape:
    return VitShape(
        image_px=image_px,
        patch_px=patch_px,
        width=width,
        num_heads=width // 64,
        num_layers=num_layers,
        mlp_width=4 * width,
        embed_dim=width,
        has_cls=False,
        has_projection=False,
        activation="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )


KNOWN_SHAPES: dict[str, VitShape] = {
    "openai/clip-vit-base-patch32": _clip(224, 32, 768, 12, 512),
    "openai/clip-vit-base-patch16": _clip(224, 16, 768, 12, 512),
    "openai/clip-vit-large-patch14": _clip(224, 14, 1024, 24, 768),
    "openai/clip-vit-large-patch14-336": _clip(336, 14, 1024, 24, 768),
    "google/siglip-base-patch16-224": _siglip(224, 16, 768, 12),
    "google/siglip-large-patch16-256": _siglip(256, 16, 1024, 24),
}
"""Published towers whose sizes are known here, so that a benchmark on random weights needs no hub."""
