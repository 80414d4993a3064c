"""FLOPs per frame as the published artifact counts them: only to place our points beside its figure's.

They are not what is executed (see `flops.py`): no patch embedding, every layer's MLP for every token of the dense
tower, and additions of a product counted as k - 1.

Source: docs/methods.md, read from the artifact's formulas; equal to its own table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape

BASE = KNOWN_SHAPES["openai/clip-vit-base-patch16"]
LARGE = KNOWN_SHAPES["openai/clip-vit-large-patch14"]

# What the artifact measured on its two towers: ReuseViT's add-ons; Eventful's gates, once and per refreshed token.
REUSEVIT_ADDED = {"base": 440215982493 / 256, "large": 1601543316484 / 256}
EVENTFUL_FIXED = {"base": 21794670.0, "large": 75821209.0}
EVENTFUL_PER_TOKEN = {"base": 64038.09375, "large": 231743.1875}


def original(shape: VitShape) -> float:
    """Return the dense tower's FLOPs."""
    tokens, width = shape.num_tokens, shape.width
    attention = 4 * tokens**2 * width + shape.num_heads * (5 * tokens**2 - 2 * tokens + 1) - tokens * width
    return float(tokens * _token(shape) + shape.num_layers * attention + 20 * width**2 + width + 3)


def cmc(shape: VitShape, reuse_rate: float) -> float:
    """Return CMC's FLOPs at a reuse rate, 0..1 of all tokens."""
    _check_rate(reuse_rate)
    computed = math.floor(shape.num_tokens * (1 - reuse_rate))
    return original(shape) - (shape.num_tokens - computed) * _token(shape)


def reusevit(shape: VitShape, reuse_rate: float) -> float:
    """Return ReuseViT's FLOPs at a reuse rate, 0..1 of all tokens.

    Raises:
        ValueError: The artifact has no figure for this tower.
    """
    _check_rate(reuse_rate)
    saved_per_token = (shape.num_layers - 1) * (24 * shape.width**2 - 3 * shape.width)
    added = _known(REUSEVIT_ADDED, shape)
    return original(shape) + added - reuse_rate * shape.num_tokens * saved_per_token


def eventful(shape: VitShape, refreshed_tokens: int) -> float:
    """Return Eventful's FLOPs with k refreshed tokens.

    Raises:
        ValueError: The artifact has no figure for this tower, or k is not 1..N.
    """
    if not 1 <= refreshed_tokens <= shape.num_tokens:
        raise ValueError(f"refreshed_tokens: got {refreshed_tokens}, expected 1..{shape.num_tokens}; choose another")
    layers = shape.num_layers
    gates = _known(EVENTFUL_FIXED, shape) + _known(EVENTFUL_PER_TOKEN, shape) * refreshed_tokens
    sorting = (layers * (2 * shape.num_heads + 1) + (2 * layers - 1) / 256) * math.ceil(
        refreshed_tokens * math.log2(refreshed_tokens)
    )
    return original(shape) - (shape.num_tokens - refreshed_tokens) * _token(shape) + gates + sorting


def diffrate(shape: VitShape, prune_kept: Sequence[int], merge_kept: Sequence[int]) -> float:
    """Return DiffRate's FLOPs under a schedule of tokens kept per layer, CLS counted.

    Raises:
        ValueError: The schedule has another number of layers.
    """
    if not len(prune_kept) == len(merge_kept) == shape.num_layers:
        raise ValueError(
            f"schedule: got {len(prune_kept)} and {len(merge_kept)} layers, expected {shape.num_layers}; "
            "take the schedule of this tower"
        )
    width, total, tokens = shape.width, 2 * shape.width**2 + shape.width + 3, shape.num_tokens
    for pruned, merged in zip(prune_kept, merge_kept, strict=True):
        total += tokens * (6 * width**2 + 2 * width + 3) + 4 * tokens**2 * width - tokens * width
        total += shape.num_heads * (5 * tokens**2 - 2 * tokens + 1)
        total += merged * (18 * width**2 + 2 * width + 3) + (pruned - merged) * (merged * (2 * width - 1) + width)
        tokens = merged
    return float(total)


def _token(shape: VitShape) -> int:
    """One token's way through all layers but attention."""
    width, layers = shape.width, shape.num_layers
    return 6 * width**2 * layers + 18 * width**2 * (layers - 1) + (2 * layers - 1) * (2 * width + 3)


def _known(table: dict[str, float], shape: VitShape) -> float:
    for name, known in (("base", BASE), ("large", LARGE)):
        if _sizes(shape) == _sizes(known):
            return table[name]
    raise ValueError(
        f"published FLOPs: got a tower of width {shape.width} and {shape.num_tokens} tokens, expected ViT-B/16 or "
        "ViT-L/14 at 224 px; only original, cmc and diffrate have a formula elsewhere"
    )


def _sizes(shape: VitShape) -> tuple[int, ...]:
    return shape.num_tokens, shape.width, shape.num_heads, shape.num_layers, shape.mlp_width


def _check_rate(reuse_rate: float) -> None:
    if not 0 <= reuse_rate <= 1:
        raise ValueError(f"reuse_rate: got {reuse_rate}, expected 0..1; divide percentages by 100")
