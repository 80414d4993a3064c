"""Models that are not a tower of ours are refused in one line."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from reuse_models.vit import Vit

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 16}


def test_a_text_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone: got a 'clip_text_model' model, expected CLIP or SigLIP"):
        Vit.from_hf(CLIPTextModel(CLIPTextConfig(**SIZE, vocab_size=50, bos_token_id=1, eos_token_id=2)))


def test_a_siglip_tower_without_its_head_is_refused() -> None:
    config = SiglipVisionConfig(**SIZE, **IMAGE)
    config.vision_use_head = False
    with pytest.raises(ValueError, match="without its pooling head"):
        Vit.from_hf(SiglipVisionModel(config))


def test_other_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 colour channels"):
        Vit.from_hf(CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZE, **IMAGE, num_channels=1)))


def test_the_copy_keeps_type_and_shares_nothing() -> None:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZE, **IMAGE)).to(torch.bfloat16)
    vit = Vit.from_hf(model)
    before = vit.position.clone()
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight.add_(1.0)
    assert vit.position.dtype == torch.bfloat16
    assert torch.equal(vit.position, before)
