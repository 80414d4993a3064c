"""Reading a Hugging Face vision tower into a `Vit`: CLIP, SigLIP, DINOv2 with and without registers, DINOv3's ViTs.

A family's own names stay in its reader here. Weights come under the names of a model's state or of its published files;
where the two differ, both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reuse_models.tower.positions import at_size, rotary_table
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import QUICK_GELU_SLOPE, Vit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP = ("clip", "clip_vision_model")
SIGLIP = ("siglip", "siglip_vision_model")
DINOV2 = ("dinov2", "dinov2_with_registers")
DINOV3 = ("dinov3_vit",)
READABLE = (*CLIP, *SIGLIP, *DINOV2, *DINOV3)
"""Model types, as a config names them."""
TWO_TOWERS = ("clip", "siglip")
"""Models of which the vision tower is one half."""
TOWER = "vision_model."
"""What the names of the tower's weights begin with, in a model that is more than the tower."""
EXPECTED = "CLIP, SigLIP or SigLIP 2 of fixed size, DINOv2, or a ViT of DINOv3; choose another backbone"


def from_hf(model: PreTrainedModel, image_px: int | None = None) -> Vit:
    """Copy the vision tower of a Hugging Face model.

    Args:
        model: CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, SiglipModel, SiglipVisionModel, Dinov2Model,
            Dinov2WithRegistersModel or DINOv3ViTModel.
        image_px: Side of the frames that it will see; that of its config unless given. Positions are interpolated as
            the model's own code does.

    Raises:
        ValueError: The model is of another family, or one whose activation or head `Vit` does not have, or it cannot
            run at this size.
    """
    check_family(getattr(model.config, "model_type", type(model).__name__))
    projection = getattr(model, "visual_projection", None)
    config = getattr(model.config, "vision_config", model.config)
    shape = shape_of(config, None if projection is None else projection.out_features)
    weights, shape = at_size(tower_weights(model.state_dict(), shape), shape, image_px)
    weight = next(model.parameters())
    vit = Vit(shape).to(weight.dtype)
    vit.load_state_dict(weights)
    return vit.to(weight.device)


def check_family(model_type: str) -> None:
    """Refuse, by a ValueError, a model of a family that is not read here."""
    if model_type in ("siglip2", "siglip2_vision_model"):
        raise ValueError(
            f"backbone: got a {model_type!r} model, whose frames may have any shape (NaFlex), expected a SigLIP 2 of "
            "fixed size such as google/siglip2-base-patch16-224; choose one"
        )
    if model_type not in READABLE:
        raise ValueError(f"backbone: got a {model_type!r} model, expected {EXPECTED}")


def shape_of(config: Any, embed_dim: int | None) -> VitShape:
    """Return the sizes of a vision tower.

    Args:
        config: Of the tower, with its fields as attributes.
        embed_dim: The projection's width, None where there is no projection.

    Raises:
        ValueError: A size or activation is one that `Vit` does not have.
    """
    family = str(config.model_type)
    if family in SIGLIP and not getattr(config, "vision_use_head", True):
        raise ValueError("backbone: got a SigLIP tower without its pooling head, expected one; choose another backbone")
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError(f"backbone: got {config.num_channels} colour channels, expected 3; choose another backbone")
    gated = bool(getattr(config, "use_swiglu_ffn", False) or getattr(config, "use_gated_mlp", False))
    return VitShape(
        image_px=_side(config.image_size, "image_size"),
        patch_px=_side(config.patch_size, "patch_size"),
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        mlp_width=_mlp_width(config, family, gated),
        embed_dim=config.hidden_size if embed_dim is None else embed_dim,
        has_cls=family not in SIGLIP,
        num_registers=getattr(config, "num_register_tokens", 0) if family in ("dinov2_with_registers", *DINOV3) else 0,
        has_pre_norm=family in CLIP,
        has_projection=embed_dim is not None,
        activation="silu" if gated and family in DINOV2 else config.hidden_act,
        gated_mlp=gated,
        rope_theta=float(config.rope_theta) if family in DINOV3 else None,
        layer_norm_eps=config.layer_norm_eps,
    )


def tower_weights(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    """Return the weights of a `Vit` from those of a model under their published names.

    Raises:
        KeyError: One is not there.
    """
    tower = {name.removeprefix(TOWER): weight for name, weight in state.items()}
    is_dino = "embeddings.cls_token" in tower
    weights = _dino_weights(tower, shape) if is_dino else _clip_weights(tower, shape)
    if shape.rope_theta is not None:
        weights["rotary_2Nd"] = rotary_table(shape)
    return weights


def _side(size: Any, name: str) -> Any:
    """Return one side of what may be given as two."""
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"backbone: got a {name} of {size}, expected a square; choose another backbone")
    return sides[0]


def _mlp_width(config: Any, family: str, gated: bool) -> Any:
    if family not in DINOV2:
        return config.intermediate_size
    # DINOv2 has a ratio; its gated MLP takes two thirds of it, rounded up to a multiple of 8.
    width = int(config.hidden_size * config.mlp_ratio)
    return (int(width * 2 / 3) + 7) // 8 * 8 if gated else width


# CLIP and SigLIP.


def _clip_weights(tower: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    slope = QUICK_GELU_SLOPE if shape.activation == "quick_gelu" else 1.0
    weights = {
        "patch_weight": tower["embeddings.patch_embedding.weight"],
        **_pair(tower, "post_layernorm", "post_norm"),
    }
    position_ND = tower["embeddings.position_embedding.weight"]
    if shape.has_cls:
        weights["position"] = torch.cat([tower["embeddings.class_embedding"] + position_ND[:1], position_ND[1:]])
        weights |= _pair(tower, "pre_layrnorm", "pre_norm")
    else:
        weights["position"] = position_ND + tower["embeddings.patch_embedding.bias"]
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


# DINOv2 and DINOv3.

DINO_NAMES = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("embeddings.patch_embeddings.projection", "embeddings.patch_embeddings"),
    ("mlp.fc1", "mlp.up_proj"),
    ("mlp.fc2", "mlp.down_proj"),
    ("mlp.weights_out", "mlp.down_proj"),
)
"""Names of DINOv2's files and models, and what they are read as: those of DINOv3's ViTs."""


def _dino_weights(state: Mapping[str, Tensor], shape: VitShape) -> dict[str, Tensor]:
    tower: dict[str, Tensor] = {}
    for name, weight in state.items():
        for theirs, ours in DINO_NAMES:
            name = name.replace(theirs, ours)  # noqa: PLW2901
        tower[name.removeprefix("encoder.").removeprefix("model.")] = weight
    cls_1D = tower["embeddings.cls_token"][0]
    patch_bias_D = tower["embeddings.patch_embeddings.bias"]
    if shape.rope_theta is None:
        position_ND = tower["embeddings.position_embeddings"][0]
        cls_1D = cls_1D + position_ND[:1]
        patches_AD = position_ND[1:] + patch_bias_D
    else:
        patches_AD = patch_bias_D.expand(shape.num_patches, -1)
    registers = [tower["embeddings.register_tokens"][0]] if shape.num_registers else []
    norm = "layernorm" if "layernorm.weight" in tower else "norm"
    weights = {
        "patch_weight": tower["embeddings.patch_embeddings.weight"],
        "position": torch.cat([cls_1D, *registers, patches_AD]),
        **_pair(tower, norm, "post_norm"),
    }
    for index in range(shape.num_layers):
        of_layer = _dino_layer(tower, f"layer.{index}", shape)
        weights |= {f"layers.{index}.{name}": weight for name, weight in of_layer.items()}
    return weights


def _dino_layer(tower: Mapping[str, Tensor], layer: str, shape: VitShape) -> dict[str, Tensor]:
    """What a layer adds is scaled channel by channel: the scales move into its last products."""
    attention, mlp = f"{layer}.attention", f"{layer}.mlp"
    if f"{mlp}.weights_in.weight" in tower:
        fc1 = {kind: tower[f"{mlp}.weights_in.{kind}"] for kind in ("weight", "bias")}
    elif shape.gated_mlp:
        halves = [_biased(tower, f"{mlp}.{name}") for name in ("gate_proj", "up_proj")]
        fc1 = {kind: torch.cat([half[kind] for half in halves]) for kind in ("weight", "bias")}
    else:
        fc1 = _biased(tower, f"{mlp}.up_proj")
    qkv = [_biased(tower, f"{attention}.{part}_proj") for part in "qkv"]
    return {
        "qkv_weight": torch.cat([one["weight"] for one in qkv]),
        "qkv_bias": torch.cat([one["bias"] for one in qkv]),
        **_scaled(_biased(tower, f"{attention}.o_proj"), tower[f"{layer}.layer_scale1.lambda1"], "out"),
        **_pair(tower, f"{layer}.norm1", "norm1"),
        **_pair(tower, f"{layer}.norm2", "norm2"),
        "fc1_weight": fc1["weight"],
        "fc1_bias": fc1["bias"],
        **_scaled(_biased(tower, f"{mlp}.down_proj"), tower[f"{layer}.layer_scale2.lambda1"], "fc2"),
    }


def _biased(tower: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return a product's weight and bias, zeros where it has none (DINOv3's keys)."""
    weight = tower[f"{name}.weight"]
    bias = tower.get(f"{name}.bias")
    return {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}


def _scaled(product: Mapping[str, Tensor], scale_D: Tensor, name: str) -> dict[str, Tensor]:
    return {f"{name}_weight": product["weight"] * scale_D[:, None], f"{name}_bias": product["bias"] * scale_D}


def _pair(tower: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}_{part}": tower[f"{theirs}.{part}"] for part in ("weight", "bias")}
