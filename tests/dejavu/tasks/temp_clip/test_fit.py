from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dejavu.records import Question
from dejavu.tasks.temp_clip.answers import SeenClip, answer_questions, embed_candidates
from dejavu.tasks.temp_clip.fit import NotFiniteError, TempClipFit, TempClipFitConfig, TrainingSet, remembered
from dejavu.tasks.temp_clip.head import TempClipShape
from dejavu.tasks.temp_clip.weights import read_weights, save_temp_clip

NUM_WORDS = 6
SHAPE = TempClipShape(feature_width=8, sentence_width=8, width=16, ffn_width=16, num_heads=2)
CONFIG = TempClipFitConfig(
    width=16, ffn_width=16, epochs=15, questions_per_step=20, learning_rate=1e-2, dropout=0.0, redrawn_rate=0.3
)


def embed(texts: list[str] | tuple[str, ...]) -> torch.Tensor:
    """One direction for each word."""
    return torch.stack([torch.eye(8)[int(text.rsplit(" ", 1)[-1])] for text in texts])


def training_set(num_clips: int = 60, *, seed: int = 0) -> TrainingSet:
    """Clips that show one thing all along, and who shows it."""
    rng = np.random.default_rng(seed)
    clips, questions = {}, []
    for index in range(num_clips):
        shown = int(rng.integers(NUM_WORDS))
        answers = [int(word) for word in rng.permutation(NUM_WORDS)[:5]]
        if shown not in answers:
            answers[int(rng.integers(5))] = shown
        features = np.eye(8, dtype=np.float32)[shown] + rng.normal(0, 0.1, (32, 8)).astype(np.float32)
        clips[str(index)] = SeenClip(features.astype(np.float32), np.arange(32) / 2)
        questions.append(
            Question(
                question_id=f"{index}_0",
                clip_id=str(index),
                split="train",
                kind="CW",
                text=f"who is like {shown}",
                answers=tuple(str(word) for word in answers),
                correct=answers.index(shown),
                spans_s=((0.0, 5.0),),
                duration_s=16.0,
            )
        )
    return TrainingSet(tuple(questions), clips, "{answer}")


def accuracy(fit: TempClipFit, given: TrainingSet) -> float:
    sentences = embed_candidates(given.questions, embed, given.prompt)
    found = answer_questions(fit.head, given.clips, given.questions, sentences)["gauss"]
    return float(np.mean([p.answer == q.correct for p, q in zip(found, given.questions, strict=True)]))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_head_learns_what_can_be_seen_and_answers_about_clips_it_has_not_seen() -> None:
    fit = TempClipFit(SHAPE, None, training_set(), CONFIG)
    before = accuracy(fit, training_set(seed=1))
    reports = [fit.run_epoch(remembered(embed)) for _ in range(CONFIG.epochs)]
    assert before < 0.6
    assert accuracy(fit, training_set(seed=1)) > 0.9
    assert reports[-1]["grounding_loss"] < reports[0]["grounding_loss"]


def test_a_fit_that_was_resumed_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = replace(CONFIG, dropout=0.2, epochs=4)
    whole = TempClipFit(SHAPE, None, training_set(), config)
    for _ in range(4):
        whole.run_epoch(embed)
    first = TempClipFit(SHAPE, None, training_set(), config)
    for _ in range(2):
        first.run_epoch(embed)
    save_temp_clip(first.head, first.trained_text(), "backbone", tmp_path / "last.safetensors")
    first.save_optimizer(tmp_path / "optimizer.safetensors")
    second = TempClipFit(SHAPE, None, training_set(), config)
    second.load_weights(read_weights(tmp_path / "last.safetensors"))
    second.load_optimizer(tmp_path / "optimizer.safetensors")
    for _ in range(2):
        second.run_epoch(embed)
    for name, weight in whole.head.state_dict().items():
        torch.testing.assert_close(second.head.state_dict()[name], weight, rtol=0, atol=0)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights() -> None:
    given = training_set()
    spoilt = {**given.clips, "7": SeenClip(np.full((32, 8), np.nan, np.float32), np.arange(32) / 2)}
    fit = TempClipFit(SHAPE, None, replace(given, clips=spoilt), CONFIG)
    with pytest.raises(NotFiniteError, match=r"temp_clip loss: got nan .* in epoch 1, expected finite"):
        fit.run_epoch(embed)
    assert all(bool(torch.isfinite(weight).all()) for weight in fit.head.parameters())


def test_the_right_answer_stays_among_wrong_ones_that_are_drawn_anew() -> None:
    given = training_set()
    fit = TempClipFit(SHAPE, None, given, replace(CONFIG, redrawn_rate=1.0))
    rng = np.random.default_rng(0)
    for question in given.questions:
        texts, right = fit._candidates(question, rng)
        assert texts[right] == question.answers[question.correct]
        assert len(set(texts)) == 5
        others, own = fit._other_questions(question, rng)
        assert others[own] == question.text
        assert others.count(question.text) == 1
        assert len(others) == 5


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"dropout": 1.5}, {"learning_rate": 0.0}, {"grounding_weight": -1.0}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"task\.fit"):
        TempClipFitConfig(**wrong)  # type: ignore[arg-type]


def test_an_encoder_remembers_no_more_texts_than_it_may() -> None:
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> Tensor:
        asked.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    embed = remembered(encode, most=3)
    assert embed(["a", "bb", "ccc", "dddd"]).flatten().tolist() == [1, 2, 3, 4]
    assert embed(["bb", "dddd"]).flatten().tolist() == [2, 4]
    assert asked == ["a", "bb", "ccc", "dddd"]
    assert embed(["a", "bb"]).flatten().tolist() == [1, 2]
    assert asked[4:] == ["a"]
