"""Answers and spans of a TempCLIP head for all questions about a set of clips.

Q questions, B questions at once, A candidates, F frames of a clip, N frames that the head sees, E embedding width,
S sentence width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dejavu.records import Prediction, Question
from dejavu.tasks.posthoc_span import Span, combined_span, gaussian_span, posthoc_span
from dejavu.tasks.temp_clip.head import TempClip

SpanKind = Literal["gauss", "posthoc", "combined"]
SPAN_KINDS: tuple[SpanKind, ...] = ("gauss", "posthoc", "combined")
QUESTIONS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class SeenClip:
    """The frames of one clip that the head sees."""

    features_NE: NDArray[np.float32]
    seconds_N: NDArray[np.float64]


def sample_frames(num_frames: int, wanted: int) -> NDArray[np.int64]:
    """Return the indices of `wanted` frames spread evenly from the first to the last, rounded down as published.

    A clip has one at least; with fewer frames it gives some of them more than once.
    """
    return np.linspace(0, num_frames - 1, wanted).astype(np.int64)


def see_clip(embeddings_FE: NDArray[np.float32], seconds_F: NDArray[np.float64], wanted: int) -> SeenClip:
    """Take the frames that a head sees."""
    index_N = sample_frames(len(embeddings_FE), wanted)
    return SeenClip(np.asarray(embeddings_FE[index_N], dtype=np.float32), np.asarray(seconds_F[index_N]))


def embed_candidates(
    questions: Sequence[Question], embed: Callable[[Sequence[str]], torch.Tensor], prompt: str
) -> dict[str, NDArray[np.float32]]:
    """Embed the candidates of all questions, each different text once: question id -> [A, S]."""
    texts = {
        question.question_id: [prompt.format(question=question.text, answer=answer) for answer in question.answers]
        for question in questions
    }
    unique = sorted({text for candidates in texts.values() for text in candidates})
    if not unique:
        return {}
    sentences_TS = embed(unique).float().cpu().numpy()
    row_of = {text: row for row, text in enumerate(unique)}
    return {name: sentences_TS[[row_of[text] for text in candidates]] for name, candidates in texts.items()}


@torch.inference_mode()
def answer_questions(
    head: TempClip,
    clips: Mapping[str, SeenClip],
    questions: Sequence[Question],
    sentences: Mapping[str, NDArray[np.float32]],
) -> dict[SpanKind, list[Prediction]]:
    """Answer every question; the answer is the same for the three kinds of span.

    Args:
        head: In evaluation mode.
        clips: By clip id, each as the head sees it: read once, however many questions are about it.
        questions: All with the same number of candidates as their sentences.
        sentences: By question id, [A, S] of its candidates.

    Returns:
        One prediction a question under each kind of span, in the order of the questions.

    Raises:
        ValueError: The head gives values that are no numbers.
    """
    device = next(head.parameters()).device
    found: dict[SpanKind, list[Prediction]] = {kind: [] for kind in SPAN_KINDS}
    for group in _alike(questions, sentences):
        features_BNE = torch.from_numpy(np.stack([clips[question.clip_id].features_NE for question in group]))
        sentences_BAS = torch.from_numpy(np.stack([sentences[question.question_id] for question in group]))
        grounded = head(features_BNE.to(device), sentences_BAS.to(device))
        fractions_B2 = grounded.span().clamp(0, 1)
        if not bool(torch.isfinite(grounded.logits_BA).all() and torch.isfinite(fractions_B2).all()):
            raise ValueError(
                f"temp_clip: got answers that are no numbers for question {group[0].question_id} or one of the "
                f"{len(group) - 1} after it, expected numbers; check the checkpoint and the embeddings"
            )
        answers = grounded.logits_BA.argmax(dim=-1).tolist()
        for question, answer, fraction, attention in zip(
            group, answers, fractions_B2.tolist(), grounded.attention_BF.tolist(), strict=True
        ):
            spans = _spans(question, (fraction[0], fraction[1]), attention, clips[question.clip_id])
            for kind, span_s in spans.items():
                found[kind].append(Prediction(question_id=question.question_id, answer=answer, span_s=span_s))
    place = {question.question_id: index for index, question in enumerate(questions)}
    return {kind: sorted(some, key=lambda one: place[one.question_id]) for kind, some in found.items()}


def _spans(question: Question, fraction: Span, attention: Sequence[float], clip: SeenClip) -> dict[SpanKind, Span]:
    gauss_s = gaussian_span(fraction, question.duration_s)
    posthoc_s = posthoc_span(attention, clip.seconds_N.tolist())
    return {"gauss": gauss_s, "posthoc": posthoc_s, "combined": combined_span(gauss_s, posthoc_s)}


def _alike(questions: Sequence[Question], sentences: Mapping[str, NDArray[np.float32]]) -> list[list[Question]]:
    """Group questions with equally many candidates, a batch at a time."""
    by_count: dict[int, list[Question]] = {}
    for question in questions:
        by_count.setdefault(len(sentences[question.question_id]), []).append(question)
    return [
        some[start : start + QUESTIONS_AT_ONCE]
        for _, some in sorted(by_count.items())
        for start in range(0, len(some), QUESTIONS_AT_ONCE)
    ]
