"""Text encoders of a trained head: a tiny RoBERTa as save_pretrained writes it, and the backbone's text tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dejavu.backbones.load import BackboneError, load_backbone
from dejavu.backbones.sentences import BACKBONE, load_sentences, mean_hidden


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
