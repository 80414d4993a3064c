"""The training job, a few steps of it: what it writes is an ordinary backbone, and a seed decides it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from dejavu.backbones.load import load_backbone
from dejavu.synthetic.world import KINDS

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(JOBS))
        return importlib.import_module("make_backbone")


def train(job: ModuleType, out: Path, seed: int) -> Path:
    tiny = {"width": 32, "num_layers": 3, "num_heads": 2, "text_layers": 1, "batch_frames": 4, "num_threads": 1}
    job.main(job.MakeBackboneConfig(out=out, seed=seed, patch_steps=2, word_steps=2, joint_steps=3, **tiny))
    return out


def test_it_writes_an_ordinary_clip_directory_and_a_seed_decides_it(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again, other = (train(job, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    model = CLIPModel.from_pretrained(first)
    assert model.config.text_config.eos_token_id == len(AutoTokenizer.from_pretrained(first)) - 1
    assert model.dtype == torch.float16
    backbone = load_backbone(str(first))
    assert backbone.embed_texts([kind.phrase for kind in KINDS]).shape == (48, 32)
    assert backbone.frame_px == 128
    assert load_backbone(str(again)).identity == backbone.identity
    assert load_backbone(str(other)).identity != backbone.identity


def test_every_word_of_an_answer_has_an_id_of_its_own(job: ModuleType) -> None:
    tokenizer = job.make_tokenizer()
    ids = [tuple(tokenizer(kind.phrase)["input_ids"]) for kind in KINDS]
    assert len(set(ids)) == 48
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert tokenizer.unk_token_id in tokenizer("a red giraffe")["input_ids"]


def test_phrases_are_true_of_the_kinds_they_name(job: ModuleType) -> None:
    said = job.phrases()
    assert said.holds_KC.shape == (48, 62)
    for index, text in enumerate(said.texts):
        named = text.split()[1:]
        for kind, holds in zip(KINDS, said.holds_KC[:, index], strict=True):
            assert bool(holds) == (set(named) <= {kind.colour, kind.shape})


def test_heads_that_start_local_look_at_their_neighbour(job: ModuleType) -> None:
    torch.manual_seed(0)
    config = job.MakeBackboneConfig(out=Path("unused"))
    tower = job.make_model(config, job.make_tokenizer()).vision_model
    attention = tower.encoder.layers[1].self_attn
    place_ND = tower.embeddings.position_embedding.weight[1:]
    with torch.inference_mode():
        query = attention.q_proj.weight[32:64] @ place_ND.T
        key = attention.k_proj.weight[32:64] @ place_ND.T
    scores_NN = query.T @ key
    row, column = 3, 4
    assert scores_NN[row * 8 + column].argmax().item() == (row + 1) * 8 + column + 1


def test_a_phrase_counts_as_visible_as_its_best_seen_object(job: ModuleType) -> None:
    said = job.phrases()
    visible = torch.zeros(1, 48)
    visible[0, KINDS.index(next(kind for kind in KINDS if str(kind) == "red circle"))] = 0.9
    confident = torch.full((1, 62), -20.0)
    missed = job.phrase_loss(confident, visible, said)
    true_of_it = torch.tensor([text in {"a red circle", "something red", "a circle"} for text in said.texts])
    found = job.phrase_loss(torch.where(true_of_it, 20.0, -20.0)[None], visible, said)
    assert found.item() == pytest.approx(0.0, abs=1e-5)
    assert missed.item() == pytest.approx(20 + 0.3 * 40, abs=1e-3)


def test_order_counts_seen_kinds_above_unseen_ones_of_the_same_parts(job: ModuleType) -> None:
    names = [str(kind) for kind in KINDS]
    visible = torch.zeros(1, 48)
    visible[0, [names.index("red circle"), names.index("blue ring")]] = 1.0
    cosine = torch.zeros(1, 48)
    cosine[0, names.index("red circle")] = 0.9
    cosine[0, names.index("blue ring")] = 0.5
    cosine[0, names.index("red ring")] = 0.7
    # Unseen, of seen parts: a red ring and a blue circle. Of four pairs, one is the wrong way round.
    assert job.order(cosine, visible) == 0.75
