"""Sizes that do not make a tower are refused; published ones are as published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape

LARGE = KNOWN_SHAPES["openai/clip-vit-large-patch14"]


def test_known_shapes_have_the_published_sizes() -> None:
    assert (LARGE.num_tokens, LARGE.width, LARGE.num_layers, LARGE.num_heads, LARGE.embed_dim) == (
        257,
        1024,
        24,
        16,
        768,
    )
    base = KNOWN_SHAPES["openai/clip-vit-base-patch16"]
    assert (base.num_tokens, base.patches_per_side, base.embed_dim, base.head_dim) == (197, 14, 512, 64)


def test_pixels_beyond_the_last_whole_patch_are_left_out() -> None:
    assert replace(LARGE, image_px=225).num_patches == 256


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_heads": 7}, "width 1024 and 7 heads"),
        ({"image_px": 10}, "10 px in patches of 14 px"),
        ({"num_layers": 0}, "and 0 layers"),
        ({"activation": "relu"}, "tower activation: got 'relu'"),
        ({"has_projection": False}, "embed_dim 768 without a projection, expected the width 1024"),
    ],
)
def test_sizes_that_make_no_tower_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(LARGE, **change)


def test_a_shape_is_a_key() -> None:
    assert {LARGE: 1}[VitShape(**{name: getattr(LARGE, name) for name in VitShape.__slots__})] == 1
