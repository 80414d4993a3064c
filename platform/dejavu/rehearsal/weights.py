"""Random weights of a published tower's size, as `save_pretrained` writes them, with a text tower and a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dejavu.backbones.text import quiet
from dejavu.backbones.words import word_tokenizer
from reuse_models.tower.shape import VitShape

CLIP_TEXT_TOKENS = 77
SIGLIP_TEXT_TOKENS = 64
HUGE = 1024
"""Width of the common space of ViT-H."""
HEAD_DIM = 64
BYTES_PER_WEIGHT = 4


def text_sizes(shape: VitShape) -> dict[str, int]:
    """Return the sizes of the text tower that was published with a vision tower, its vocabulary apart.

    CLIP's is as wide as the common space and has 12 layers, 24 in ViT-H; SigLIP's is as large as its vision tower.

    Raises:
        ValueError: The tower has none: it is neither CLIP's nor SigLIP's.
    """
    if shape.has_cls and shape.has_projection:
        width, layers, positions = shape.embed_dim, 24 if shape.embed_dim >= HUGE else 12, CLIP_TEXT_TOKENS
        mlp_width, heads = 4 * width, max(1, width // HEAD_DIM)
    elif not shape.has_cls:
        width, layers, positions = shape.width, shape.num_layers, SIGLIP_TEXT_TOKENS
        mlp_width, heads = shape.mlp_width, shape.num_heads
    else:
        raise ValueError(
            "backbone: got a tower without text tower, expected CLIP's or SigLIP's, since NExT-QA asks in words; "
            "run the recipe folder on your own videos instead"
        )
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }


def num_bytes(shape: VitShape) -> int:
    """Return about what the weights of both towers take on a disk: layers alone, in float32."""
    text = text_sizes(shape)
    layers = (shape.num_layers, shape.width, shape.mlp_width)
    text_layers = (text["num_hidden_layers"], text["hidden_size"], text["intermediate_size"])
    return sum(BYTES_PER_WEIGHT * n * (4 * d * d + 2 * d * m) for n, d, m in (layers, text_layers))


def write_weights_apart(shape: VitShape, words: Sequence[str], folder: Path) -> None:
    """Do as `write_weights` in a process apart: it does not give back the memory, which a run would have to share."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        apart.submit(write_weights, shape, words, folder).result()


def write_weights(shape: VitShape, words: Sequence[str], folder: Path, seed: int = 0) -> None:
    """Write a whole CLIPModel or SiglipModel with random weights, its tokenizer and its preprocessor.

    The folder is what `load_backbone` takes.

    Raises:
        ValueError: The tower has no text tower.
    """
    with quiet():
        from transformers import (  # noqa: PLC0415  slow to import
            CLIPConfig,
            CLIPImageProcessor,
            CLIPModel,
            SiglipConfig,
            SiglipImageProcessor,
            SiglipModel,
        )

    text = text_sizes(shape)
    tokenizer = word_tokenizer(words, text["max_position_embeddings"])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    common: dict[str, Any] = {"layer_norm_eps": shape.layer_norm_eps, "hidden_act": shape.activation}
    text_config = {**text, **ids, **common, "vocab_size": len(tokenizer), "projection_size": shape.embed_dim}
    vision_config = {
        **common,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "image_size": shape.image_px,
        "patch_size": shape.patch_px,
    }
    side = {"height": shape.image_px, "width": shape.image_px}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        if shape.has_cls:
            config = CLIPConfig(
                text_config={**text_config, "projection_dim": shape.embed_dim},
                vision_config={**vision_config, "projection_dim": shape.embed_dim},
                projection_dim=shape.embed_dim,
            )
            model: Any = CLIPModel(config)
            processor: Any = CLIPImageProcessor(size={"shortest_edge": shape.image_px}, crop_size=side)
        else:
            model = SiglipModel(SiglipConfig(text_config=text_config, vision_config=vision_config))
            processor = SiglipImageProcessor(size=side)
        folder.mkdir(parents=True, exist_ok=True)
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        processor.save_pretrained(folder)
