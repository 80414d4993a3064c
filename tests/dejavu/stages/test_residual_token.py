"""What ResidualViT's token is fitted on, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dejavu.backbones.load import Backbone
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.windows import Window
from dejavu.stages import residual_token as stage
from dejavu.stages import train_task
from dejavu.stages.residual_token import TokenResult, apart, pairs_of, read_residual_token, task_bytes
from dejavu.stages.train_task import TrainError
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import write_json
from reuse_models.baselines.original import OriginalConfig
from reuse_models.baselines.residual_vit.fit import TokenFitConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit
from tests.dejavu.stages.conftest import clip

FEW = TokenFitConfig(steps=2, windows_per_step=1)


def original(backbone: Backbone, embedding: EmbedContext) -> Setting:
    return name_setting(OriginalConfig(), backbone.identity, embedding.config.shaping())


def test_a_frame_stands_beside_those_shortly_before_it() -> None:
    assert apart([0, 4, 8, 12, 10, 11], 3) == [(2, 4), (2, 5), (4, 3), (4, 5), (5, 3)]
    assert apart([0, 4], 3) == []


def test_pairs_are_frames_of_a_window_with_their_teachers(backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    side, patches = backbone.frame_px, backbone.vit.shape.patches_per_side
    teacher_FE = rng.normal(size=(6, backbone.vit.shape.embed_dim)).astype(np.float32)
    codec_F4TPP = np.zeros((6, 4, 4, patches, patches), np.float32)
    window = Window(rng.integers(0, 256, (6, side, side, 3), dtype=np.uint8), codec_F4TPP, teacher_FE)
    pairs = pairs_of(window, backbone)
    pixels = backbone.preprocess(window.rgb_FHWC)
    assert torch.equal(pairs.keys_X3HW, pixels[[2, 2, 4, 4, 5]])
    assert torch.equal(pairs.frames_X3HW, pixels[[4, 5, 3, 5, 3]])
    assert torch.equal(pairs.key_XE, torch.from_numpy(teacher_FE[[2, 2, 4, 4, 5]]))
    assert torch.equal(pairs.dense_XE, torch.from_numpy(teacher_FE[[4, 5, 3, 5, 3]]))


def test_a_fit_reads_clips_and_teachers_and_says_what_it_is_worth(
    backbone: Backbone, embedding: EmbedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_embedding: EmbedContext, _setting: Setting, clips: Any) -> dict[str, Any]:
        known = [one for one in clips if one.clip_id != "no teacher"]
        return {one.clip_id: SimpleNamespace(embeddings_FE=np.ones((one.num_frames, 128), np.float32)) for one in known}

    monkeypatch.setattr("dejavu.embedding.windows.read_embeddings", read)
    train = [clip(embedding, "a", 20), clip(embedding, "no teacher", 20)]
    gone = replace(clip(embedding, "b", 20), path="mp4/gone.mp4")
    outcome = stage._fit([*train, gone], [clip(embedding, "c", 14)], original(backbone, embedding), embedding, FEW)
    assert not isinstance(outcome, str)
    tokenizer, worth, failures = outcome
    assert {name: list(value.shape) for name, value in tokenizer.state_dict().items()} == {
        "weight_DE": [128, 128],
        "bias_D": [128],
    }
    assert worth["cosine"] is not None
    assert worth["cosine_without"] is not None
    assert -1 <= worth["cosine_without"] <= worth["cosine"] + 1 <= 2
    assert [failure.clip_id for failure in failures] in ([], ["b"])  # only if a step came to it
    nothing = stage._fit([gone], [], original(backbone, embedding), embedding, FEW)
    assert isinstance(nothing, str)
    assert "none of which can be read" in nothing


def test_without_a_long_clip_there_is_nothing_to_learn(backbone: Backbone, embedding: EmbedContext) -> None:
    short = clip(embedding, "a", 12)
    with pytest.raises(TrainError, match="no training clip of 13 frames or more"):
        stage.fit_residual_token({"train": [short]}, original(backbone, embedding), backbone, embedding, FEW)


def test_a_token_that_is_no_help_is_left_out(backbone: Backbone, embedding: EmbedContext, tmp_path: Path) -> None:
    assert read_residual_token(embedding, backbone) is None
    weights = tmp_path / "token.safetensors"
    assert TokenResult(weights, 0.9, 0.8).config.weights == str(weights)
    assert TokenResult(weights, 0.8, 0.9).config.weights is None
    assert TokenResult(weights, None, None).config.weights == str(weights)
    folder = embedding.store.root / "tokens" / backbone.identity[:12]
    write_json(folder / "x.json", {"cosine": 0.9, "cosine_without": 0.8})
    write_json(folder / "latest.json", "x.safetensors")
    found = read_residual_token(embedding, backbone)
    assert found is not None
    assert (found.weights, found.cosine, found.is_new) == (folder.resolve() / "x.safetensors", 0.9, False)


def test_what_fits_on_no_machine_is_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Vit.random(replace(KNOWN_SHAPES["openai/clip-vit-base-patch32"], num_layers=2))
    assert task_bytes(large, TokenFitConfig()) > task_bytes(backbone.vit, TokenFitConfig())
    monkeypatch.setattr(train_task, "grows", lambda: False)
    monkeypatch.setattr(train_task, "memory_per_machine", lambda: [2**29, 2**20])
    with pytest.raises(TrainError, match=r"residual token: got machines of 0.5 GiB at most, expected .* GiB; lower"):
        stage.check_memory(large, TokenFitConfig())
    monkeypatch.setattr(train_task, "memory_per_machine", lambda: [2**36])
    assert stage.check_memory(large, TokenFitConfig()) == task_bytes(large, TokenFitConfig())
