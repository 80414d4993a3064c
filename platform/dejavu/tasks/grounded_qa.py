"""Questions about videos: the right answer, seen at the right time as NExT-GQA scores it, or the answer alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from dejavu.records import AnswerScore, EvalRow, Prediction, Question, TaskScore

Span = tuple[float, float]

TYPE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "CW": ("CW",),
    "CH": ("CH",),
    "Bef&Aft": ("TN", "TP"),
    "TC": ("TC",),
    "C": ("CW", "CH"),
    "T": ("TN", "TP", "TC"),
}
"""NExT-QA's question types as its papers report them."""
DURATION_ROUNDING_S = 0.5
"""Annotated durations are whole seconds: a span that ends so much later may still be inside the video."""


def overlap_of(predicted_s: Span, annotated_s: Span) -> tuple[float, float]:
    """Compare one predicted with one annotated span, (start, end) in seconds each, start <= end.

    Returns:
        IoP, the overlap's share of the predicted span, and IoU, its share of the hull of both; 0..1. A predicted
        span of no length inside the annotated one has IoP 1: all of it is right, though it covers nothing.
    Source: NExT-GQA (arXiv:2309.01327).
    """
    start, end = max(predicted_s[0], annotated_s[0]), min(predicted_s[1], annotated_s[1])
    if start > end:
        return 0.0, 0.0
    predicted_length = predicted_s[1] - predicted_s[0]
    hull = max(predicted_s[1], annotated_s[1]) - min(predicted_s[0], annotated_s[0])
    iop = (end - start) / predicted_length if predicted_length > 0 else 1.0
    iou = (end - start) / hull if hull > 0 else 0.0
    return iop, iou


def score(questions: Sequence[Question], predictions: Sequence[Prediction]) -> TaskScore:
    """Score one prediction for each question that has an annotated span.

    Args:
        questions: Those to be scored, of any number of clips; one without an annotated span is counted and left out.
        predictions: Exactly one for each of the others, in any order.

    Raises:
        ValueError: A question has no prediction or several, a prediction has no question, an answer or a span is
            impossible, or nothing is left to score.
    Source: NExT-GQA (arXiv:2309.01327); thresholds are inclusive.
    """
    by_id = _by_question(questions, predictions)
    scored = [question for question in questions if question.spans_s]
    if not scored:
        raise ValueError(
            f"questions: got {len(questions)}, none with an annotated span, expected one; score fidelity instead"
        )
    rows = tuple(_row(question, by_id[question.question_id]) for question in scored)
    return TaskScore(
        num_questions=len(rows),
        num_without_span=len(questions) - len(rows),
        num_clips=len({row.clip_id for row in rows}),
        acc_qa=fmean(row.correct for row in rows),
        acc_gqa=fmean(row.grounded for row in rows),
        miop=fmean(row.iop for row in rows),
        tiop_03=fmean(row.iop >= 0.3 for row in rows),
        tiop_05=fmean(row.iop >= 0.5 for row in rows),
        miou=fmean(row.iou for row in rows),
        tiou_03=fmean(row.iou >= 0.3 for row in rows),
        tiou_05=fmean(row.iou >= 0.5 for row in rows),
        by_type=_accuracy_by_type(scored, rows),
        rows=rows,
        num_beyond_video=sum(_leaves_video(question, by_id[question.question_id]) for question in scored),
    )


def score_choices(questions: Sequence[Question], chosen: Mapping[str, int]) -> AnswerScore:
    """Score one answer for each question, where nothing says when it is seen.

    `chosen` is by question id an index into its answers, exactly one for each question.

    Raises:
        ValueError: There is no question, one stands twice or has no answer, or an answer is not among the choices.
    """
    ids = {question.question_id for question in questions}
    outside = [one.question_id for one in questions if not 0 <= chosen.get(one.question_id, -1) < len(one.answers)]
    if not questions or len(ids) != len(questions) or ids != set(chosen) or outside:
        raise ValueError(
            f"choices: got {len(questions)} questions of {len(ids)} ids and {len(chosen)} answers, {len(outside)} "
            "questions without one of their choices, expected one for each; leave a clip that failed out for every "
            "method alike"
        )
    rows = tuple(
        EvalRow(
            question_id=question.question_id,
            clip_id=question.clip_id,
            correct=chosen[question.question_id] == question.correct,
        )
        for question in questions
    )
    return AnswerScore(accuracy=fmean(row.correct for row in rows), rows=rows)


def _leaves_video(question: Question, prediction: Prediction) -> bool:
    start_s, end_s = prediction.span_s
    return start_s < 0 or (question.duration_s > 0 and end_s > question.duration_s + DURATION_ROUNDING_S)


def _row(question: Question, prediction: Prediction) -> EvalRow:
    overlaps = [overlap_of(prediction.span_s, annotated) for annotated in question.spans_s]
    # The best IoP and the best IoU may be of different annotated spans. Neither is rounded, although 6.3 s - 4.2 s of
    # 4.2 s then falls just below one half: NExT-GQA's numbers count it so, and ours stand beside them.
    iop = max(iop for iop, _ in overlaps)
    iou = max(iou for _, iou in overlaps)
    correct = prediction.answer == question.correct
    return EvalRow(
        question_id=question.question_id,
        clip_id=question.clip_id,
        correct=correct,
        iop=iop,
        iou=iou,
        grounded=correct and iop >= 0.5,
    )


def _accuracy_by_type(questions: Sequence[Question], rows: Sequence[EvalRow]) -> dict[str, float]:
    accuracy = {}
    for name, kinds in TYPE_GROUPS.items():
        correct = [row.correct for question, row in zip(questions, rows, strict=True) if question.kind in kinds]
        if correct:
            accuracy[name] = fmean(correct)
    return accuracy


def _by_question(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Prediction]:
    """Pair them one to one, or say what does not pair."""
    by_id = {prediction.question_id: prediction for prediction in predictions}
    asked = {question.question_id: question for question in questions}
    faults = {
        "questions given twice": _repeated(question.question_id for question in questions),
        "questions predicted twice": _repeated(prediction.question_id for prediction in predictions),
        "predictions without a question": sorted(by_id.keys() - asked.keys()),
        "questions without a prediction": sorted(
            question_id for question_id, question in asked.items() if question.spans_s and question_id not in by_id
        ),
        "answers outside the choices": sorted(
            question_id
            for question_id in by_id.keys() & asked.keys()
            if not 0 <= by_id[question_id].answer < len(asked[question_id].answers)
        ),
        "spans that end before they start or are not numbers": sorted(
            question_id for question_id, prediction in by_id.items() if not prediction.span_s[0] <= prediction.span_s[1]
        ),
    }
    found = [f"{len(ids)} {what} (first {ids[0]!r})" for what, ids in faults.items() if ids]
    if found:
        raise ValueError(
            f"predictions: got {'; '.join(found)}, expected one prediction for each of the {len(asked)} questions; "
            "leave a clip that failed out of both for every method alike"
        )
    return by_id


def _repeated(question_ids: Iterable[str]) -> list[str]:
    return sorted(question_id for question_id, count in Counter(question_ids).items() if count > 1)
