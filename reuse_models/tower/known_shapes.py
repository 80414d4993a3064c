"""Sizes of towers that are published: beside `shape`, since no result follows from what else is known here."""

from __future__ import annotations

from reuse_models.tower.shape import Activation, VitShape


def _clip(  # noqa: PLR0913, PLR0917  a row of the table below
    image_px: int, patch_px: int, width: int, num_layers: int, embed_dim: int, activation: Activation = "quick_gelu"
) -> VitShape:
    return VitShape(
        image_px=image_px,
        patch_px=patch_px,
        width=width,
        num_heads=16 if width > 1024 else width // 64,
        num_layers=num_layers,
        mlp_width=4 * width,
        embed_dim=embed_dim,
        has_cls=True,
        activation=activation,
    )


def _siglip(image_px: int, patch_px: int, width: int, num_layers: int, mlp_width: int | None = None) -> VitShape:
    return VitShape(
        image_px=image_px,
        patch_px=patch_px,
        width=width,
        num_heads=16 if width > 1024 else width // 64,
        num_layers=num_layers,
        mlp_width=mlp_width or 4 * width,
        embed_dim=width,
        has_cls=False,
        has_pre_norm=False,
        has_projection=False,
        activation="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )


def _dino(version: int, width: int, num_layers: int, *, num_registers: int = 0, swiglu: int | None = None) -> VitShape:
    """Return a DINO tower at 224 px; `swiglu` is the width of a gated MLP."""
    return VitShape(
        image_px=224,
        patch_px=14 if version == 2 else 16,
        width=width,
        num_heads=width // 64,
        num_layers=num_layers,
        mlp_width=swiglu or 4 * width,
        embed_dim=width,
        has_cls=True,
        num_registers=num_registers,
        has_pre_norm=False,
        has_projection=False,
        activation="silu" if swiglu else "gelu",
        gated_mlp=swiglu is not None,
        rope_theta=None if version == 2 else 100.0,
        layer_norm_eps=1e-6 if version == 2 else 1e-5,
    )


KNOWN_SHAPES: dict[str, VitShape] = {
    "openai/clip-vit-base-patch32": _clip(224, 32, 768, 12, 512),
    "openai/clip-vit-base-patch16": _clip(224, 16, 768, 12, 512),
    "openai/clip-vit-large-patch14": _clip(224, 14, 1024, 24, 768),
    "openai/clip-vit-large-patch14-336": _clip(336, 14, 1024, 24, 768),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": _clip(224, 32, 768, 12, 512, "gelu"),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": _clip(224, 14, 1024, 24, 768, "gelu"),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _clip(224, 14, 1280, 32, 1024, "gelu"),
    "apple/DFN5B-CLIP-ViT-H-14": _clip(224, 14, 1280, 32, 1024),
    "google/siglip-base-patch16-224": _siglip(224, 16, 768, 12),
    "google/siglip-large-patch16-256": _siglip(256, 16, 1024, 24),
    "google/siglip-so400m-patch14-384": _siglip(384, 14, 1152, 27, 4304),
    "google/siglip2-base-patch16-224": _siglip(224, 16, 768, 12),
    "google/siglip2-large-patch16-256": _siglip(256, 16, 1024, 24),
    "google/siglip2-so400m-patch14-384": _siglip(384, 14, 1152, 27, 4304),
    "facebook/dinov2-small": _dino(2, 384, 12),
    "facebook/dinov2-base": _dino(2, 768, 12),
    "facebook/dinov2-large": _dino(2, 1024, 24),
    "facebook/dinov2-giant": _dino(2, 1536, 40, swiglu=4096),
    "facebook/dinov2-with-registers-small": _dino(2, 384, 12, num_registers=4),
    "facebook/dinov2-with-registers-base": _dino(2, 768, 12, num_registers=4),
    "facebook/dinov2-with-registers-large": _dino(2, 1024, 24, num_registers=4),
    "facebook/dinov3-vits16-pretrain-lvd1689m": _dino(3, 384, 12, num_registers=4),
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": _dino(3, 384, 12, num_registers=4, swiglu=1536),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": _dino(3, 768, 12, num_registers=4),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": _dino(3, 1024, 24, num_registers=4),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": _dino(3, 1280, 32, num_registers=4, swiglu=5120),
}
"""Published towers whose sizes are known here, so that a benchmark on random weights needs no hub. DINO's, which run at
any size, are given at that of their preprocessor."""
