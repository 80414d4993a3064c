"""Multiple choice without spans: the share of right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from dejavu.records import AnswerScore, EvalRow, Question


def score_choices(questions: Sequence[Question], chosen: Mapping[str, int]) -> AnswerScore:
    """Score one answer for each question.

    Args:
        questions: Those to be scored, of any number of clips.
        chosen: Question id -> index into its answers; exactly one for each question.

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
