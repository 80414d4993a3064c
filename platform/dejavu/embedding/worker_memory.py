"""What a worker's memory comes to by formula, so that it is known before the work begins.

Shapes: L layers, D width, M the MLP's width, h heads, T texts, W tokens of a text.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dejavu.backbones.sentences import MAX_TOKENS, TRAINED_AT_ONCE
from dejavu.embedding.stored import PART_FRAMES
from dejavu.tasks.temp_clip.fit import REMEMBERED
from dejavu.tasks.temp_clip.head import NUM_FRAMES, TempClip

COPIES_TRAINED = 6
"""Of trained weights: themselves, gradients, two moments of Adam, and those moments once more while they are saved."""
IN_WORK = 1.5
"""What a backward pass holds beside what was kept for it, as a factor."""


def tower_bytes(vit: nn.Module) -> int:
    """Return the bytes of a tower's weights."""
    return sum(weight.numel() * weight.element_size() for weight in vit.parameters())


def encoder_kept_values(config: Any) -> int:
    """Count the float32 that the backward pass keeps of one text in a RoBERTa: L W (10 D + 2 M + 3 h W + 4)."""
    tokens = min(MAX_TOKENS, config.max_position_embeddings - 2)
    channels = 10 * config.hidden_size + 2 * config.intermediate_size
    return int(config.num_hidden_layers * tokens * (channels + 3 * config.num_attention_heads * tokens + 4))


def head_fit_bytes(vit: nn.Module, head: TempClip, encoder: Any, num_clips: int) -> int:
    """Bound the memory of fitting a TempCLIP head beside the interpreter.

    `encoder` is a RoBERTa that is trained with it; None for the backbone's text tower.
    """
    width = head.shape.feature_width
    seen = num_clips * NUM_FRAMES * (4 * width + 8)
    reading = 2 * PART_FRAMES * 4 * width
    texts = REMEMBERED * 4 * head.shape.sentence_width
    if encoder is not None:
        texts = int(IN_WORK * TRAINED_AT_ONCE * 4 * encoder_kept_values(encoder.config))
        texts += COPIES_TRAINED * tower_bytes(encoder)
    loading = 2 * tower_bytes(vit)
    return max(loading, tower_bytes(vit) + seen + max(reading, texts) + COPIES_TRAINED * tower_bytes(head))
