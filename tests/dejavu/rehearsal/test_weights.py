"""Random weights load as published ones do, and have the shape that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dejavu.backbones.load import load_backbone
from dejavu.rehearsal.footage import WORDS
from dejavu.rehearsal.weights import num_bytes, text_sizes, write_weights
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape

LARGE, SIGLIP = KNOWN_SHAPES["openai/clip-vit-large-patch14"], KNOWN_SHAPES["google/siglip-base-patch16-224"]


def small(shape: VitShape) -> VitShape:
    return replace(
        shape,
        width=128,
        num_heads=2,
        num_layers=2,
        mlp_width=256,
        embed_dim=128 if shape.embed_dim == shape.width else 64,
    )


@pytest.mark.parametrize("shape", [LARGE, SIGLIP], ids=["clip", "siglip"])
def test_a_tower_is_read_back_with_its_shape_and_answers_in_words(shape: VitShape, tmp_path: Path) -> None:
    wanted = small(shape)
    write_weights(wanted, WORDS, tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.vit.shape == wanted
    texts = backbone.embed_texts(["a red circle", "what does the blue ring do", "a red circle"])
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(texts[0], texts[2])
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_one(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_weights(small(LARGE), WORDS, tmp_path / name, seed)
    assert torch.equal(torch.rand(1), expected)
    one, again, other = (load_backbone(str(tmp_path / name)).identity for name in ("one", "again", "other"))
    assert one == again != other


def test_text_towers_are_those_that_were_published() -> None:
    # openai/clip-vit-large-patch14: 12 layers of 768 and 12 heads, 77 tokens; SigLIP's text tower is like its vision's.
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    assert text_sizes(LARGE) == {**large, "max_position_embeddings": 77}
    assert text_sizes(SIGLIP)["num_hidden_layers"] == 12
    assert text_sizes(SIGLIP)["max_position_embeddings"] == 64


def test_the_bytes_are_about_those_of_the_file(tmp_path: Path) -> None:
    shape = replace(small(LARGE), width=256, num_heads=4, mlp_width=1024, num_layers=4, embed_dim=128)
    write_weights(shape, WORDS, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        total = sum(tensors.get_tensor(name).numel() * 4 for name in tensors.keys())  # noqa: SIM118  not a mapping
    assert num_bytes(shape) == pytest.approx(total, rel=0.1)


def test_a_tower_without_words_is_refused_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^backbone: got a tower without text tower, .*; run the recipe folder[^\n]*$"
    ):
        text_sizes(replace(SIGLIP, has_cls=True))
