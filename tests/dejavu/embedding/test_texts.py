"""What the text tower says is kept, and asked for again only where something else would come out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavu.backbones import text
from dejavu.backbones.load import Backbone, load_backbone
from dejavu.backbones.locate import BackboneError
from dejavu.backbones.text import TextTower
from dejavu.embedding.texts import embed_texts
from dejavu.storage.store import Store

TEXTS = ("a blue square", "a red circle", "a red circle moving left")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts the tower was asked, each time."""
    counts: list[int] = []
    embed = TextTower.embed

    def counting(tower: TextTower, texts: Sequence[str]) -> torch.Tensor:
        counts.append(len(texts))
        return embed(tower, texts)

    monkeypatch.setattr(TextTower, "embed", counting)
    return counts


def test_texts_are_embedded_once(tmp_path: Path, backbone: Backbone, asked: list[int]) -> None:
    first, second = (embed_texts(TEXTS, backbone, Store(tmp_path)) for _ in range(2))
    assert asked == [3]
    assert torch.equal(first, second)
    assert torch.equal(first, backbone.embed_texts(TEXTS))


def test_other_texts_tower_or_tokenizer_are_asked_anew(tmp_path: Path, backbone: Backbone, asked: list[int]) -> None:
    store = Store(tmp_path / "store")
    assert backbone.text is not None
    copied = tmp_path / "copied"
    shutil.copytree(backbone.text.directory, copied)
    (copied / "special_tokens_map.json").write_text("{}")
    for texts, other in (
        (TEXTS, backbone),
        (TEXTS[:2], backbone),
        (TEXTS, replace(backbone, identity="another")),
        (TEXTS, replace(backbone, text=replace(backbone.text, directory=copied))),
    ):
        embed_texts(texts, other, store)
    assert asked == [3, 2, 3, 3]


def test_many_texts_are_embedded_in_parts(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = backbone.embed_texts(TEXTS)
    monkeypatch.setattr(text, "TEXTS_AT_ONCE", 2)
    torch.testing.assert_close(backbone.embed_texts(TEXTS), whole, atol=1e-6, rtol=1e-5)


def test_a_backbone_without_text_tower_says_so(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="got a vision tower without text tower"):
        embed_texts(TEXTS, replace(backbone, text=None), Store(tmp_path))
    assert not list(tmp_path.rglob("*.parquet"))
