"""Formulas of memory against what autograd keeps."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from dejavu.backbones.sentences import TRAINED_AT_ONCE, mean_hidden, trained_mean_hidden
from dejavu.embedding.worker_memory import encoder_kept_values, tower_bytes
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit


class Kept:
    """What the backward pass holds of one tensor."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def roberta(**sizes: int) -> RobertaModel:
    usual = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
    config = RobertaConfig(**{**usual, **sizes}, vocab_size=50, max_position_embeddings=64, pad_token_id=1)
    return RobertaModel(config, add_pooling_layer=False).train()


def kept_bytes(encoder: nn.Module, num_texts: int, *, in_parts: bool = False) -> int:
    weights = {weight.untyped_storage().data_ptr() for weight in encoder.parameters()}
    packed: list[weakref.ref[Kept]] = []

    def pack(x: Tensor) -> Kept:
        kept = Kept(x)
        packed.append(weakref.ref(kept))
        return kept

    tokens_TW = torch.randint(2, 50, (num_texts, 38))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.x):
        hidden_TS = (trained_mean_hidden if in_parts else mean_hidden)(encoder, tokens_TW)
    alive = [kept.x.untyped_storage() for ref in packed if (kept := ref()) is not None]
    del hidden_TS
    return sum(
        {storage.data_ptr(): storage.nbytes() for storage in alive if storage.data_ptr() not in weights}.values()
    )


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 96}, {"num_attention_heads": 8}, {"intermediate_size": 192}])
def test_what_a_trained_roberta_keeps_of_a_text_is_the_formula(sizes: dict[str, int]) -> None:
    three, two = (kept_bytes(roberta(num_hidden_layers=layers, **sizes), 4) for layers in (3, 2))
    assert 2 * (three - two) / 4 == 4 * encoder_kept_values(roberta(**sizes).config)


def test_many_texts_keep_their_tokens_alone() -> None:
    encoder = roberta()
    assert kept_bytes(encoder, 4 * TRAINED_AT_ONCE, in_parts=True) < 0.02 * kept_bytes(encoder, 4 * TRAINED_AT_ONCE)


def test_a_published_step_in_parts_takes_a_gigabyte_where_it_would_take_seventeen() -> None:
    """RoBERTa-base, 64 questions with five candidates and five other questions each."""
    values = encoder_kept_values(RobertaConfig())
    assert 17 * 2**30 > 4 * values * 640 > 16 * 2**30
    assert 4 * values * TRAINED_AT_ONCE < 2**30


def test_a_towers_bytes_are_those_of_its_weights() -> None:
    with torch.device("meta"):
        tower = Vit(KNOWN_SHAPES["openai/clip-vit-large-patch14"])
    assert tower_bytes(tower) == pytest.approx(1.21e9, rel=0.01)
