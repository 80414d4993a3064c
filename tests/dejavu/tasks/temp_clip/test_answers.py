from __future__ import annotations

import numpy as np
import pytest
import torch

from dejavu.records import Question
from dejavu.tasks.grounded_qa import score
from dejavu.tasks.posthoc_span import posthoc_span
from dejavu.tasks.temp_clip.answers import answer_questions, embed_candidates, sample_frames, see_clip
from dejavu.tasks.temp_clip.head import TempClip, TempClipShape

SHAPE = TempClipShape(feature_width=6, sentence_width=5, width=16, ffn_width=8, num_heads=2, num_frames=8)


def question(name: str, clip_id: str, num_answers: int = 5, duration_s: float = 20.0) -> Question:
    return Question(
        question_id=name,
        clip_id=clip_id,
        split="test",
        kind="CW",
        text="why",
        answers=tuple(f"{name} {index}" for index in range(num_answers)),
        correct=0,
        spans_s=((2.0, 5.0),),
        duration_s=duration_s,
    )


def embed(texts: list[str] | tuple[str, ...]) -> torch.Tensor:
    return torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts])


def test_frames_run_from_the_first_to_the_last_rounded_down() -> None:
    assert sample_frames(32, 32).tolist() == list(range(32))
    assert sample_frames(9, 4).tolist() == [0, 2, 5, 8]
    assert sample_frames(1, 3).tolist() == [0, 0, 0]


def test_each_text_is_embedded_once_with_its_prompt() -> None:
    asked: list[str] = []

    def count(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return embed(texts)

    same = question("q", "a")
    found = embed_candidates([same, question("q", "b")], count, "{question} </s> {answer}")  # type: ignore[arg-type]
    assert sorted(asked) == [f"why </s> q {index}" for index in range(5)]
    assert found["q"].shape == (5, 5)


def test_answers_and_spans_are_those_of_the_head_question_by_question() -> None:
    torch.manual_seed(2)
    head = TempClip(SHAPE)
    head.gaussian.bias.data += torch.tensor([2.0, 4.0])  # near the end and wide: the span leaves the clip and is cut
    rng = np.random.default_rng(0)
    clips = {name: see_clip(rng.normal(size=(30, 6)).astype(np.float32), np.arange(30) / 2 + 0.25, 8) for name in "ab"}
    questions = [question("one", "a"), question("two", "b", num_answers=3), question("three", "a", duration_s=15.0)]
    sentences = embed_candidates(questions, embed, "{answer}")
    found = answer_questions(head, clips, questions, sentences)
    for index, one in enumerate(questions):
        with torch.no_grad():
            alone = head(
                torch.from_numpy(clips[one.clip_id].features_NE)[None],
                torch.from_numpy(sentences[one.question_id])[None],
            )
        gauss, posthoc, combined = (found[kind][index] for kind in ("gauss", "posthoc", "combined"))
        assert {gauss.question_id, posthoc.question_id, combined.question_id} == {one.question_id}
        assert gauss.answer == posthoc.answer == combined.answer == int(alone.logits_BA.argmax())
        start, end = alone.span()[0].clamp(0, 1).tolist()
        assert gauss.span_s == (round(start * one.duration_s, 1), round(end * one.duration_s, 1))
        assert gauss.span_s[1] <= one.duration_s
        assert posthoc.span_s == posthoc_span(alone.attention_BF[0].tolist(), clips[one.clip_id].seconds_N.tolist())
        assert combined.span_s[0] >= posthoc.span_s[0]
        assert combined.span_s[1] <= posthoc.span_s[1]
    assert score(questions, found["combined"]).num_questions == 3


def test_embeddings_that_are_no_numbers_are_refused() -> None:
    head = TempClip(SHAPE)
    clips = {"a": see_clip(np.full((30, 6), np.nan, np.float32), np.arange(30) / 2, 8)}
    questions = [question("one", "a")]
    with pytest.raises(ValueError, match="no numbers for question one"):
        answer_questions(head, clips, questions, embed_candidates(questions, embed, "{answer}"))
