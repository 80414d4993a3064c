"""Text encoders of a trained head: a tiny RoBERTa as save_pretrained writes it, and the backbone's text tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dejavu.backbones.load import BackboneError, load_backbone
from dejavu.backbones.sentences import (
    BACKBONE,
    TRAINED_AT_ONCE,
    load_sentences,
    mean_hidden,
    trained_mean_hidden,
)


def test_a_roberta_is_read_from_its_directory_and_separates_question_from_answer(roberta: Path) -> None:
    sentences = load_sentences(str(roberta), None)
    tokens_TW = sentences.tokens(["why is the dog wet </s> it swam"])
    assert tokens_TW.shape == (1, 38)
    assert tokens_TW[0, :11].tolist() == [0, 4, 5, 6, 7, 8, 2, 9, 10, 2, 1]
    assert sentences.width == 16


def test_a_sentence_is_the_mean_over_all_positions_whatever_stands_beside_it(roberta: Path) -> None:
    sentences = load_sentences(str(roberta), None)
    texts = ["the dog", "why is the dog wet </s> it swam ."]
    together_TS = sentences.embed(texts)
    torch.testing.assert_close(together_TS[:1], sentences.embed(texts[:1]))
    tokens_TW = sentences.tokens(texts)
    with torch.no_grad():
        hidden = sentences.encoder(input_ids=tokens_TW, attention_mask=(tokens_TW != 1).long()).last_hidden_state
        torch.testing.assert_close(together_TS, hidden.sum(dim=1) / 38)
        torch.testing.assert_close(mean_hidden(sentences.encoder, tokens_TW), together_TS)


@pytest.mark.parametrize("num_texts", [2, 2 * TRAINED_AT_ONCE + 3])
def test_texts_in_parts_have_the_gradient_of_all_texts_at_once(roberta: Path, num_texts: int) -> None:
    """Where no dropout draws: which text it takes what from follows from the order of the draws."""
    encoder = load_sentences(str(roberta), None).encoder.double().eval()
    tokens_TW = torch.randint(4, 12, (num_texts, 38), generator=torch.Generator().manual_seed(1))
    weight_TS = torch.randn(num_texts, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for how in (mean_hidden, trained_mean_hidden):
        encoder.zero_grad()
        (how(encoder, tokens_TW) * weight_TS).sum().backward()
        found.append([weight.grad.clone() for weight in encoder.parameters() if weight.grad is not None])
    assert len(found[0]) > 10
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_a_part_computed_again_has_the_dropout_that_it_had(roberta: Path) -> None:
    """Else the gradient would be another function's: compared with parts that are kept, drawn in the same order."""
    encoder = load_sentences(str(roberta), None).encoder.double().train()
    tokens_TW = torch.randint(4, 12, (TRAINED_AT_ONCE + 5, 38), generator=torch.Generator().manual_seed(1))
    found = []
    for again in (False, True):
        encoder.zero_grad()
        torch.manual_seed(3)
        parts = [mean_hidden(encoder, part) for part in tokens_TW.split(TRAINED_AT_ONCE)] if not again else []
        hidden_TS = trained_mean_hidden(encoder, tokens_TW) if again else torch.cat(parts)
        hidden_TS.square().sum().backward()
        found.append([hidden_TS.detach(), *(w.grad.clone() for w in encoder.parameters() if w.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_a_checkpoints_weights_replace_the_encoders_own(roberta: Path) -> None:
    plain = load_sentences(str(roberta), None)
    trained = {name: weight + 0.5 for name, weight in plain.encoder.state_dict().items()}
    found = load_sentences(str(roberta), None, {**trained, "pooler.dense.bias": torch.zeros(16)})
    for name, weight in found.encoder.state_dict().items():
        assert torch.equal(weight, trained[name])
    del trained["embeddings.LayerNorm.bias"]
    with pytest.raises(BackboneError, match=r"no embeddings\.LayerNorm\.bias.*--task\.text-encoder"):
        load_sentences(str(roberta), None, trained)


def test_the_backbones_text_tower_gives_its_embeddings() -> None:
    backbone = load_backbone()
    sentences = load_sentences(BACKBONE, backbone)
    assert sentences.encoder is None
    torch.testing.assert_close(sentences.embed(["a red circle"]), backbone.embed_texts(["a red circle"]))


@pytest.mark.parametrize("kind", ["missing", "empty", "clip"])
def test_what_is_no_roberta_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    name = {"missing": str(tmp_path / "none"), "empty": str(tmp_path), "clip": None}[kind]
    if name is None:
        import dejavu.backbones

        name = str(Path(dejavu.backbones.__path__[0]) / "embedded")
    expected = "no directory" if kind == "missing" else "expected a RoBERTa's config"
    with pytest.raises(BackboneError, match=expected) as caught:
        load_sentences(name, None)
    assert "\n" not in str(caught.value)
