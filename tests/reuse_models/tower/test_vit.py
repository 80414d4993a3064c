"""The cut tower equals the Hugging Face tower it was read from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

SIZES = (
    {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    {"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 3, "image_size": 45, "patch_size": 14},
)


def _randomised(model: Any) -> Any:
    """Weights large enough that a wrong activation, bias or norm shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def _pixels(side: int, num_frames: int = 3) -> Tensor:
    return torch.randn(num_frames, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("size", SIZES)
def test_a_clip_tower_gives_the_embedding_of_hugging_face(size: dict[str, int], activation: str) -> None:
    config = CLIPVisionConfig(**size, num_hidden_layers=3, projection_dim=20, hidden_act=activation)
    model = _randomised(CLIPVisionModelWithProjection(config))
    pixels = _pixels(size["image_size"])
    with torch.no_grad():
        expected = model(pixels).image_embeds
        torch.testing.assert_close(from_hf(model)(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("size", SIZES)
def test_a_siglip_tower_gives_the_pooled_output_of_hugging_face(size: dict[str, int], activation: str) -> None:
    model = _randomised(SiglipVisionModel(SiglipVisionConfig(**size, num_hidden_layers=2, hidden_act=activation)))
    pixels = _pixels(size["image_size"])
    with torch.no_grad():
        expected = model(pixels).pooler_output
        torch.testing.assert_close(from_hf(model)(pixels), expected, atol=1e-5, rtol=1e-5)


def test_whole_models_give_their_image_features() -> None:
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SIZES[0] | {"num_hidden_layers": 2}
    pixels = _pixels(32)
    clip_text = text | {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 50}
    clip = _randomised(CLIPModel(CLIPConfig(text_config=clip_text, vision_config=vision, projection_dim=12)))
    siglip_text = text | {"vocab_size": 50, "projection_size": 32}
    siglip = _randomised(SiglipModel(SiglipConfig(text_config=siglip_text, vision_config=vision)))
    with torch.no_grad():
        for model in (clip, siglip):
            expected = model.get_image_features(pixels).pooler_output
            torch.testing.assert_close(from_hf(model)(pixels), expected, atol=1e-5, rtol=1e-5)


def test_a_clip_tower_without_projection_gives_the_pooled_output() -> None:
    model = _randomised(CLIPVisionModel(CLIPVisionConfig(**SIZES[0], num_hidden_layers=2)))
    pixels = _pixels(32)
    with torch.no_grad():
        vit = from_hf(model)
        torch.testing.assert_close(vit(pixels), model(pixels).pooler_output, atol=1e-5, rtol=1e-5)
    assert vit.shape.embed_dim == 32


def test_every_hidden_state_equals_hugging_face() -> None:
    config = CLIPVisionConfig(**SIZES[0], num_hidden_layers=3, projection_dim=20)
    model = _randomised(CLIPVisionModelWithProjection(config))
    vit = from_hf(model)
    with torch.no_grad():
        expected = model(_pixels(32), output_hidden_states=True).hidden_states
        h_BND = vit.embed(_pixels(32))
        for index in range(3):
            torch.testing.assert_close(h_BND, expected[index], atol=1e-5, rtol=1e-5)
            h_BND = vit.run_layer(index, h_BND)
        torch.testing.assert_close(h_BND, expected[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_cls", [True, False])
def test_importance_is_the_attention_received(has_cls: bool) -> None:
    vit = Vit.random(tiny_shape(has_cls=has_cls), seed=3)
    with torch.no_grad():
        q, k, _ = vit.split_heads(vit.qkv(0, vit.embed(_pixels(32))))
        whole_BhNN = (q @ k.mT * vit.shape.head_dim**-0.5).softmax(-1)
        expected = whole_BhNN[:, :, 0].sum(1) if has_cls else whole_BhNN.sum(1).mean(1)
        torch.testing.assert_close(vit.importance(q, k), expected)


def test_gradients_pass_through_the_frozen_tower() -> None:
    vit = Vit.random(tiny_shape(has_cls=True)).double()
    h_BND = vit.embed(_pixels(32, 1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: vit.run_layer(0, h).sum(), (h_BND,), fast_mode=True)
    assert not any(weight.requires_grad for weight in vit.parameters())


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 32, 40), torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32)])
def test_frames_of_another_size_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"frames: got .* expected \[F, 3, 32, 32\]"):
        Vit.random(tiny_shape(has_cls=True))(wrong)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="normalise"):
        Vit.random(tiny_shape(has_cls=True))(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_another_model_is_refused() -> None:
    text = CLIPVisionConfig(**SIZES[0], num_hidden_layers=1, hidden_act="relu")
    with pytest.raises(ValueError, match="activation: got 'relu'"):
        from_hf(CLIPVisionModel(text))


def tiny_shape(*, has_cls: bool) -> VitShape:
    return VitShape(
        image_px=32,
        patch_px=8,
        width=32,
        num_heads=4,
        num_layers=2,
        mlp_width=64,
        embed_dim=24 if has_cls else 32,
        has_cls=has_cls,
        has_projection=has_cls,
    )
