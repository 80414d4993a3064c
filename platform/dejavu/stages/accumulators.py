"""What is asked of clips whose embeddings come and go: one accumulator for each kind of task.

Shapes: A candidates of a question, E embedding width, F frames of a clip, N questions, T captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dejavu.embedding.stored import ClipEmbeddings
from dejavu.records import AnswerScore, Prediction, Question, TaskScore
from dejavu.tasks.class_readers import ClassReaders, Reader
from dejavu.tasks.grounded_qa import score, score_choices
from dejavu.tasks.retrieval import pool, score_retrieval
from dejavu.tasks.temp_clip.answers import SpanKind, answer_questions, see_clip
from dejavu.tasks.temp_clip.head import TempClip
from dejavu.tasks.zero_shot import zero_shot

Clips = Mapping[str, ClipEmbeddings]
"""By clip id."""
Answers = Mapping[str, NDArray[np.float32]]
"""Question id -> [A, E], the candidates' embeddings."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What of `SettingScore` answers give; nothing where nothing is asked."""

    task: TaskScore | None = None
    by_span: Mapping[SpanKind, TaskScore] = field(default_factory=dict)
    answers: AnswerScore | None = None
    by_reader: Mapping[Reader, AnswerScore] = field(default_factory=dict)


class Accumulator(Protocol):
    """Keeps of one setting what its task needs, not the embeddings."""

    def update(self, clips: Clips, questions: Sequence[Question]) -> None:
        """Take down what some clips give for the questions about them."""
        ...

    def compute(self) -> TaskResult:
        """Score all questions, once all clips have been seen."""
        ...


class ZeroShot:
    """The candidate whose text is nearest, and where: spans are scored where questions have any."""

    def __init__(self, questions: Sequence[Question], answers_AE: Answers) -> None:
        self.questions, self.answers_AE = questions, answers_AE
        self.predictions: list[Prediction] = []

    def update(self, clips: Clips, questions: Sequence[Question]) -> None:
        for one in questions:
            clip = clips[one.clip_id]
            answer, span_s = zero_shot(clip.embeddings_FE, clip.seconds_F, self.answers_AE[one.question_id])
            self.predictions.append(Prediction(question_id=one.question_id, answer=answer, span_s=span_s))

    def compute(self) -> TaskResult:
        if any(question.spans_s for question in self.questions):
            return TaskResult(task=score(self.questions, self.predictions))
        chosen = {one.question_id: one.answer for one in self.predictions}
        return TaskResult(answers=score_choices(self.questions, chosen))


class HeadAnswers:
    """A trained head's answers and spans, each kind of span scored."""

    def __init__(self, questions: Sequence[Question], answers_AE: Answers, head: TempClip, span: SpanKind) -> None:
        self.questions, self.answers_AE, self.head, self.span = questions, answers_AE, head, span
        self.predictions: dict[SpanKind, list[Prediction]] = defaultdict(list)

    def update(self, clips: Clips, questions: Sequence[Question]) -> None:
        wanted = self.head.shape.num_frames
        asked_about = {question.clip_id for question in questions}
        seen = {name: see_clip(clips[name].embeddings_FE, clips[name].seconds_F, wanted) for name in asked_about}
        for kind, some in answer_questions(self.head, seen, questions, self.answers_AE).items():
            self.predictions[kind] += some

    def compute(self) -> TaskResult:
        by_span = {kind: score(self.questions, predictions) for kind, predictions in self.predictions.items()}
        return TaskResult(task=by_span[self.span], by_span=by_span)


class _Pooled:
    """Keeps one vector of each clip that is asked about."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.pooled: dict[str, NDArray[np.float32]] = {}

    def update(self, clips: Clips, questions: Sequence[Question]) -> None:
        self.pooled |= {name: pool(clips[name].embeddings_FE) for name in {one.clip_id for one in questions}}


class CaptionRetrieval(_Pooled):
    """Captions look for their clip among all."""

    def __init__(self, questions: Sequence[Question], answers_AE: Answers) -> None:
        super().__init__(questions)
        self.answers_AE = answers_AE

    def compute(self) -> TaskResult:
        if not self.questions:
            return TaskResult()
        captions_TE = np.stack([self.answers_AE[one.question_id][0] for one in self.questions])
        return TaskResult(answers=score_retrieval(self.questions, captions_TE, self.pooled))


class ClassAnswers(_Pooled):
    """Classes as readers tell them that were fitted on dense embeddings."""

    def __init__(self, questions: Sequence[Question], readers: ClassReaders) -> None:
        super().__init__(questions)
        self.readers = readers

    def compute(self) -> TaskResult:
        if not self.questions:
            return TaskResult()
        said = self.readers.read(np.stack([self.pooled[one.clip_id] for one in self.questions]))
        names = [one.question_id for one in self.questions]
        by_reader = {
            reader: score_choices(self.questions, dict(zip(names, label_N.tolist(), strict=True)))
            for reader, label_N in said.items()
        }
        return TaskResult(answers=by_reader["linear_probe"], by_reader=by_reader)
