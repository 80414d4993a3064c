"""A small tower of every family, for tests that hold for all of them: 36 patches of 8 px."""

from __future__ import annotations

from reuse_models.tower.shape import VitShape

SMALL = {
    "image_px": 48,
    "patch_px": 8,
    "width": 32,
    "num_heads": 2,
    "num_layers": 4,
    "mlp_width": 64,
}
DINO = {
    **SMALL,
    "embed_dim": 32,
    "has_cls": True,
    "has_pre_norm": False,
    "has_projection": False,
    "activation": "gelu",
    "layer_norm_eps": 1e-6,
}

FAMILIES: dict[str, VitShape] = {
    "clip": VitShape(**SMALL, embed_dim=16, has_cls=True),
    "siglip": VitShape(
        **SMALL,
        embed_dim=32,
        has_cls=False,
        has_pre_norm=False,
        has_projection=False,
        activation="gelu_pytorch_tanh",
    ),
    "dinov2": VitShape(**DINO),
    "dinov2_with_registers": VitShape(**DINO, num_registers=3),
    "dinov2_giant": VitShape(**{**DINO, "activation": "silu"}, gated_mlp=True),
    "dinov3": VitShape(**DINO, num_registers=4, rope_theta=100.0),
    "dinov3_gated": VitShape(**{**DINO, "activation": "silu"}, num_registers=4, rope_theta=100.0, gated_mlp=True),
}
