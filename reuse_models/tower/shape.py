"""Sizes of a vision tower.

Shapes: N tokens (prefix first: CLS where there is one, then registers), P patches a side, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")


@dataclass(frozen=True, kw_only=True, slots=True)
class VitShape:
    """Sizes of a tower. `embed_dim` is the projection's width, or `width` where there is no projection.

    A tower with CLS is CLIP's or DINO's: its embedding is CLS after the last layer, normalised, and projected where
    there is a projection. One without is SigLIP's: its embedding is pooled from all tokens by one attention layer.
    """

    image_px: int
    patch_px: int
    width: int
    num_heads: int
    num_layers: int
    mlp_width: int
    embed_dim: int
    has_cls: bool
    num_registers: int = 0
    """Tokens beside CLS that stand for no patch. As CLS, they are never reused."""
    has_pre_norm: bool = True
    """A norm before the first layer, as in CLIP."""
    has_projection: bool = True
    """A linear map from width to embed_dim ends the tower. False in SigLIP, DINO and CLIP towers without projection."""
    activation: Activation = "quick_gelu"
    gated_mlp: bool = False
    """The activated half of fc1's outputs multiplies the other half (SwiGLU), mlp_width of each."""
    rope_theta: float | None = None
    """Base of rotary positions, which turn q and k of patches (DINOv3); None where positions are added to tokens."""
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
        if self.num_registers and not self.has_cls:
            raise ValueError(
                f"tower: got {self.num_registers} registers without CLS, expected CLS before them; check the config"
            )
        if self.rope_theta is not None and self.head_dim % 4:
            raise ValueError(
                f"tower: got rotary positions on heads of width {self.head_dim}, expected a multiple of 4; "
                "check the config"
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
    def num_prefix(self) -> int:
        """Tokens before the patches, never reused: CLS and registers."""
        return int(self.has_cls) + self.num_registers

    @property
    def num_tokens(self) -> int:
        """N: the prefix and P * P patches."""
        return self.num_prefix + self.num_patches

    @property
    def num_last_queries(self) -> int:
        """Tokens that the last layer is computed for, and whose attention is importance: CLS, or all without it."""
        return 1 if self.has_cls else self.num_tokens

    @property
    def num_patches(self) -> int:
        """P * P."""
        return self.patches_per_side**2

    @property
    def head_dim(self) -> int:
        """Width of one head, d."""
        return self.width // self.num_heads

    @property
    def fc1_width(self) -> int:
        """Outputs of an MLP's first product."""
        return (2 if self.gated_mlp else 1) * self.mlp_width
