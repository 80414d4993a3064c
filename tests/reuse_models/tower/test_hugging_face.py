"""Every family's tower gives what transformers gives, at its own size and at others; other models are refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from reuse_models.tower.hugging_face import check_family, from_hf

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 16}


REAL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14, "image_size": 70}
WIDE = {"intermediate_size": 80}
TOWERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "clip": (CLIPVisionConfig, CLIPVisionModelWithProjection, {**WIDE, "projection_dim": 20}),
    "clip of LAION": (CLIPVisionConfig, CLIPVisionModelWithProjection, {**WIDE, "hidden_act": "gelu"}),
    "siglip": (SiglipVisionConfig, SiglipVisionModel, WIDE),
    "dinov2": (Dinov2Config, Dinov2Model, {}),
    "dinov2 without biases": (Dinov2Config, Dinov2Model, {"qkv_bias": False}),
    "dinov2 giant": (Dinov2Config, Dinov2Model, {"use_swiglu_ffn": True}),
    "dinov2 with registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {"num_register_tokens": 4}),
    "dinov3": (DINOv3ViTConfig, DINOv3ViTModel, {**WIDE, "num_register_tokens": 4}),
    "dinov3 plus": (
        DINOv3ViTConfig,
        DINOv3ViTModel,
        {**WIDE, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "dinov3 7b": (
        DINOv3ViTConfig,
        DINOv3ViTModel,
        {**WIDE, "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
    ),
}


def randomised(name: str, **size: int) -> Any:
    """A tower whose every weight shows: scales, biases and registers are not what they begin as."""
    config, kind, more = TOWERS[name]
    torch.manual_seed(0)
    model = kind(config(**{**REAL, **more, **size}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def embedding(model: Any, pixels: torch.Tensor, **more: bool) -> torch.Tensor:
    with torch.no_grad():
        out = model(pixel_values=pixels, **more)
    return out.image_embeds if "image_embeds" in out else out.pooler_output  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(
    "size", [{}, {"image_size": 64, "patch_size": 16, "hidden_size": 64, "num_attention_heads": 4}]
)
def test_a_tower_gives_the_embedding_of_transformers(name: str, size: dict[str, int]) -> None:
    model = randomised(name, **size)
    pixels = torch.randn(3, 3, *[size.get("image_size", 70)] * 2)
    torch.testing.assert_close(from_hf(model)(pixels), embedding(model, pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("image_px", [42, 126])
def test_at_another_size_positions_are_those_of_transformers(name: str, image_px: int) -> None:
    model = randomised(name)
    pixels = torch.randn(2, 3, image_px, image_px)
    more = {} if "dino" in name else {"interpolate_pos_encoding": True}
    vit = from_hf(model, image_px)
    torch.testing.assert_close(vit(pixels), embedding(model, pixels, **more), atol=1e-4, rtol=1e-4)
    same = from_hf(model).at_size(image_px)
    assert same.shape == vit.shape
    assert torch.equal(same(pixels), vit(pixels))


@pytest.mark.skipif("DINOV2_SMALL" not in os.environ, reason="$DINOV2_SMALL names no copy of facebook/dinov2-small")
@pytest.mark.parametrize("image_px", [224, 336, 518])
def test_published_weights_give_what_transformers_makes_of_them(image_px: int) -> None:
    model = Dinov2Model.from_pretrained(os.environ["DINOV2_SMALL"], local_files_only=True).eval()
    pixels = torch.randn(2, 3, image_px, image_px)
    torch.testing.assert_close(from_hf(model, image_px)(pixels), embedding(model, pixels), atol=2e-5, rtol=0)


@pytest.mark.parametrize("image_px", [13, 71, 0])
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(image_px: int) -> None:
    with pytest.raises(
        ValueError, match=rf"image_px: got {image_px}, expected a multiple of the tower's patches of 14"
    ):
        from_hf(randomised("dinov2"), image_px)


def test_frames_of_any_shape_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="NaFlex"):
        check_family("siglip2")


def test_a_text_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone: got a 'clip_text_model' model, expected CLIP, SigLIP or"):
        from_hf(CLIPTextModel(CLIPTextConfig(**SIZE, vocab_size=50, bos_token_id=1, eos_token_id=2)))


def test_a_siglip_tower_without_its_head_is_refused() -> None:
    config = SiglipVisionConfig(**SIZE, **IMAGE)
    config.vision_use_head = False
    with pytest.raises(ValueError, match="without its pooling head"):
        from_hf(SiglipVisionModel(config))


def test_other_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 colour channels"):
        from_hf(CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZE, **IMAGE, num_channels=1)))


def test_the_copy_keeps_type_and_shares_nothing() -> None:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZE, **IMAGE)).to(torch.bfloat16)
    vit = from_hf(model)
    before = vit.position.clone()
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight.add_(1.0)
    assert vit.position.dtype == torch.bfloat16
    assert torch.equal(vit.position, before)
