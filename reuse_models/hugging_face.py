"""Reading a Hugging Face CLIP or SigLIP vision tower into a `Vit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reuse_models.vit import QUICK_GELU_SLOPE, Vit, VitShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READABLE = {"clip", "clip_vision_model", "siglip", "siglip_vision_model"}
TOWER = "vision_model."
"""What the names of the tower's weights begin with, in a model that is more than the tower."""


def tower_of(model: PreTrainedModel) -> Vit:
    """Copy the vision tower of a Hugging Face model, as `Vit.from_hf` says.

    Raises:
        ValueError: The model is not a CLIP or SigLIP tower, or one whose activation or head `Vit` does not have.
    """
    model_type = getattr(model.config, "model_type", type(model).__name__)
    if model_type not in READABLE:
        raise ValueError(f"backbone: got a {model_type!r} model, expected CLIP or SigLIP; choose another backbone")
    projection = getattr(model, "visual_projection", None)
    shape = shape_of(
        getattr(model.config, "vision_config", model.config), None if projection is None else projection.out_features
    )
    weight = next(model.parameters())
    vit = Vit(shape).to(weight.dtype)
    vit.load_state_dict(tower_weights(model.state_dict(), shape))
    return vit.to(weight.device)


def shape_of(config: Any, embed_dim: int | None) -> VitShape:
    """Return the sizes of a vision tower.

    Args:
        config: Of the tower, with its fields as attributes.
        embed_dim: The projection's width, None where there is no projection.

    Raises:
        ValueError: A size or activation is one that `Vit` does not have.
    """
    has_cls = "siglip" not in str(config.model_type)
    if not has_cls and not getattr(config, "vision_use_head", True):
        raise ValueError("backbone: got a SigLIP tower without its pooling head, expected one; choose another backbone")
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError(f"backbone: got {config.num_channels} colour channels, expected 3; choose another backbone")
    return VitShape(
        image_px=config.image_size,
        patch_px=config.patch_size,
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        mlp_width=config.intermediate_size,
        embed_dim=config.hidden_size if embed_dim is None else embed_dim,
        has_cls=has_cls,
        has_projection=embed_dim is not None,
        activation=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
    )


def tower_weights(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    """Return the weights of a `Vit` from those of a model under their published names.

    Raises:
        KeyError: One is not there.
    """
    tower = {name.removeprefix(TOWER): weight for name, weight in state.items()}
    slope = QUICK_GELU_SLOPE if shape.activation == "quick_gelu" else 1.0
    weights = {
        "patch_weight": tower["embeddings.patch_embedding.weight"],
        "position": tower["embeddings.position_embedding.weight"],
        **_pair(tower, "post_layernorm", "post_norm"),
    }
    if shape.has_cls:
        weights["cls"] = tower["embeddings.class_embedding"]
        weights |= _pair(tower, "pre_layrnorm", "pre_norm")
    else:
        weights["patch_bias"] = tower["embeddings.patch_embedding.bias"]
        weights |= {f"pool.{name}": weight for name, weight in _pooling(tower, shape, slope).items()}
    if shape.has_projection:
        weights["projection"] = tower["visual_projection.weight"]
    for index in range(shape.num_layers):
        layer = f"encoder.layers.{index}"
        parts = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
        of_layer = {
            "qkv_weight": torch.cat([tower[f"{part}.weight"] for part in parts]),
            "qkv_bias": torch.cat([tower[f"{part}.bias"] for part in parts]),
            **_pair(tower, f"{layer}.self_attn.out_proj", "out"),
            **_pair(tower, f"{layer}.layer_norm1", "norm1"),
            **_pair(tower, f"{layer}.layer_norm2", "norm2"),
            **_mlp(tower, f"{layer}.mlp", slope),
        }
        weights |= {f"layers.{index}.{name}": weight for name, weight in of_layer.items()}
    return weights


def _pooling(tower: Mapping[str, Tensor], shape: VitShape, slope: float) -> dict[str, Tensor]:
    width = shape.width
    weight, bias = tower["head.attention.in_proj_weight"], tower["head.attention.in_proj_bias"]
    return {
        "query": tower["head.probe"][0, 0] @ weight[:width].mT + bias[:width],
        "key_value_weight": weight[width:],
        "key_value_bias": bias[width:],
        **_pair(tower, "head.attention.out_proj", "out"),
        **_pair(tower, "head.layernorm", "norm"),
        **_mlp(tower, "head.mlp", slope),
    }


def _mlp(tower: Mapping[str, Tensor], name: str, slope: float) -> dict[str, Tensor]:
    """The slope of quick_gelu moves into the weights on both sides of it: see `Vit.activate`."""
    return {
        "fc1_weight": tower[f"{name}.fc1.weight"] * slope,
        "fc1_bias": tower[f"{name}.fc1.bias"] * slope,
        "fc2_weight": tower[f"{name}.fc2.weight"] / slope,
        "fc2_bias": tower[f"{name}.fc2.bias"],
    }


def _pair(tower: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}_{part}": tower[f"{theirs}.{part}"] for part in ("weight", "bias")}
