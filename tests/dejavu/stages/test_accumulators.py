"""What is scored is the same however clips come in; each kind of task gives its own part of a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dejavu.embedding.stored import ClipEmbeddings
from dejavu.records import CAPTION, Question
from dejavu.stages.accumulators import Accumulator, CaptionRetrieval, TaskResult, ZeroShot

AXES = np.eye(3, dtype=np.float32)


def clip(*axes: int) -> ClipEmbeddings:
    """A frame for each axis, half a second apart."""
    num_frames = len(axes)
    return ClipEmbeddings(
        seconds_F=np.arange(num_frames) / 2,
        embeddings_FE=AXES[list(axes)],
        reuse_rate_F=np.zeros(num_frames, np.float32),
        flops_F=np.zeros(num_frames),
        concealed_F=np.zeros(num_frames, bool),
    )


CLIPS = {"a": clip(0, 0, 1), "b": clip(1, 1, 1), "c": clip(2, 0, 2)}


def question(clip_id: str, **fields: Any) -> Question:
    settled = {"kind": "MC", "answers": ("zero", "one", "two"), "correct": 0} | fields
    return Question(question_id=f"{clip_id}_0", clip_id=clip_id, split="test", **settled)


def result(accumulator: Accumulator, questions: Sequence[Question], at_once: int) -> TaskResult:
    names = list(CLIPS)
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        asked = [one for one in questions if one.clip_id in some]
        accumulator.update({name: CLIPS[name] for name in some}, asked)
    return accumulator.compute()


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_candidate_that_stands_out_answers(at_once: int) -> None:
    questions = [question("a", correct=1), question("b", correct=1), question("c", correct=1)]
    found = result(ZeroShot(questions, {one.question_id: AXES for one in questions}), questions, at_once)
    assert found.answers is not None
    assert found.answers.accuracy == pytest.approx(2 / 3)
    assert (found.task, found.by_span, found.by_reader) == (None, {}, {})


@pytest.mark.parametrize("at_once", [1, 3])
def test_spans_are_scored_where_there_are_any(at_once: int) -> None:
    questions = [question("a", correct=1, spans_s=((0.75, 1.25),)), question("b", correct=1)]
    found = result(ZeroShot(questions, {one.question_id: AXES for one in questions}), questions, at_once)
    assert found.answers is None
    assert found.task is not None
    assert (found.task.num_questions, found.task.acc_gqa) == (1, 1)


@pytest.mark.parametrize("at_once", [1, 3])
def test_captions_look_for_their_clip(at_once: int) -> None:
    captions = [question(name, kind=CAPTION, answers=("t",)) for name in CLIPS]
    texts = {one.question_id: AXES[[number]] for number, one in enumerate(captions)}
    found = result(CaptionRetrieval(captions, texts), captions, at_once)
    assert found.answers is not None
    assert found.answers.accuracy == 1
    assert found.answers.text_to_video is not None


def test_where_nothing_is_asked_nothing_is_found() -> None:
    assert result(CaptionRetrieval([], {}), [], 1) == TaskResult()
