"""Reading a Hugging Face CLIP or SigLIP vision tower into a `Vit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reuse_models.vit import QUICK_GELU_SLOPE, Vit, VitShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READABLE = {"clip", "clip_vision_model", "siglip", "siglip_vision_model"}


def tower_of(model: PreTrainedModel) -> Vit:
    """Copy the vision tower of a Hugging Face model, as `Vit.from_hf` says.

    Raises:
        ValueError: The model is not a CLIP or SigLIP tower, or one whose activation or head `Vit` does not have.
    """
    model_type = getattr(model.config, "model_type", type(model).__name__)
    if model_type not in READABLE:
        raise ValueError(f"backbone: got a {model_type!r} model, expected CLIP or SigLIP; choose another backbone")
    shape = shape_of(model)
    vit = Vit(shape).to(next(model.parameters()).dtype)
    with torch.no_grad():
        vit.load_state_dict(_weights(model, shape))
    return vit.to(next(model.parameters()).device)


def shape_of(model: PreTrainedModel) -> VitShape:
    """Return the sizes of the model's vision tower, read from its config.

    Raises:
        ValueError: A size or activation is one that `Vit` does not have.
    """
    config = getattr(model.config, "vision_config", model.config)
    has_cls = "siglip" not in str(config.model_type)
    projection = getattr(model, "visual_projection", None)
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
        embed_dim=config.hidden_size if projection is None else projection.out_features,
        has_cls=has_cls,
        has_projection=projection is not None,
        activation=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
    )


def _weights(model: PreTrainedModel, shape: VitShape) -> dict[str, Tensor]:
    tower: Any = getattr(model, "vision_model", model)
    slope = QUICK_GELU_SLOPE if shape.activation == "quick_gelu" else 1.0
    weights = {
        "patch_weight": tower.embeddings.patch_embedding.weight,
        "position": tower.embeddings.position_embedding.weight,
        **_named("post_norm", tower.post_layernorm),
    }
    if shape.has_cls:
        weights["cls"] = tower.embeddings.class_embedding
        weights |= _named("pre_norm", tower.pre_layrnorm)
    else:
        weights["patch_bias"] = tower.embeddings.patch_embedding.bias
        weights |= {f"pool.{name}": weight for name, weight in _pooling(tower.head, shape, slope).items()}
    if shape.has_projection:
        weights["projection"] = getattr(model, "visual_projection").weight  # noqa: B009
    for index, layer in enumerate(tower.encoder.layers):
        attention = layer.self_attn
        joined = (attention.q_proj, attention.k_proj, attention.v_proj)
        of_layer = {
            "qkv_weight": torch.cat([linear.weight for linear in joined]),
            "qkv_bias": torch.cat([linear.bias for linear in joined]),
            **_named("out", attention.out_proj),
            **_named("norm1", layer.layer_norm1),
            **_named("norm2", layer.layer_norm2),
            **_mlp(layer.mlp, slope),
        }
        weights |= {f"layers.{index}.{name}": weight for name, weight in of_layer.items()}
    return {name: weight.detach() for name, weight in weights.items()}


def _pooling(head: Any, shape: VitShape, slope: float) -> dict[str, Tensor]:
    width = shape.width
    weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
    return {
        "query": head.probe[0, 0] @ weight[:width].mT + bias[:width],
        "key_value_weight": weight[width:],
        "key_value_bias": bias[width:],
        **_named("out", head.attention.out_proj),
        **_named("norm", head.layernorm),
        **_mlp(head.mlp, slope),
    }


def _mlp(mlp: Any, slope: float) -> dict[str, Tensor]:
    """The slope of quick_gelu moves into the weights on both sides of it: see `Vit.activate`."""
    return {
        "fc1_weight": mlp.fc1.weight * slope,
        "fc1_bias": mlp.fc1.bias * slope,
        "fc2_weight": mlp.fc2.weight / slope,
        "fc2_bias": mlp.fc2.bias,
    }


def _named(name: str, module: Any) -> dict[str, Tensor]:
    return {f"{name}_weight": module.weight, f"{name}_bias": module.bias}
