"""The backbone that is shipped: small, ordinary, and good at the world it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dejavu.backbones
from dejavu.backbones.load import Backbone, load_backbone
from dejavu.datasets.synthetic import SyntheticConfig, invent, list_videos
from dejavu.synthetic.play import draw_frames
from dejavu.synthetic.script import wrong_answers
from dejavu.tasks.zero_shot import zero_shot

DIRECTORY = Path(dejavu.backbones.__file__).parent / "embedded"


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone("embedded")


def test_it_is_at_most_8_mb_and_nothing_but_config_tokenizer_and_weights() -> None:
    names = {path.name for path in DIRECTORY.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= names
    assert all(name.endswith((".json", ".safetensors")) for name in names)
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 8e6


def test_it_is_loaded_as_any_directory_is(embedded: Backbone) -> None:
    assert load_backbone(str(DIRECTORY)).identity == embedded.identity
    assert embedded.vit.shape.patches_per_side == 8
    assert embedded.frame_px == 128


def test_phrases_of_one_colour_are_nearer_than_those_of_none(embedded: Backbone) -> None:
    red_circle, red_square, blue_square = embedded.embed_texts(["a red circle", "a red square", "a blue square"])
    assert red_circle @ red_square > red_circle @ blue_square


def test_it_answers_questions_about_clips_it_never_saw(embedded: Backbone) -> None:
    right = []
    for spec in [spec for spec in list_videos(SyntheticConfig()) if spec.split == "val"][:14]:
        script, _ = invent(spec)
        step = script.fps // 2
        side, top, left = (
            script.side_px,
            (script.height_px - script.side_px) // 2,
            (script.width_px - script.side_px) // 2,
        )
        drawings = [drawing.rgb for index, drawing in enumerate(draw_frames(script)) if index % step == 0]
        frames = np.stack(drawings)[:, top : top + side, left : left + side]
        seconds = np.arange(len(frames)) / 2
        with torch.inference_mode():
            embeddings = embedded.vit(embedded.preprocess(np.ascontiguousarray(frames)))
        for target in script.targets:
            wrong = wrong_answers(np.random.default_rng(0), script, target)
            answers = embedded.embed_texts([target.kind.phrase, *(kind.phrase for kind in wrong)])
            right.append(zero_shot(embeddings.numpy(), seconds, answers.numpy())[0] == 0)
    # 84 questions, chance 20 %: the whole test split, through real videos, is measured in docs/backbone.md.
    assert np.mean(right) >= 0.65
