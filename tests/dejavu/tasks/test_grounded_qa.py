from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dejavu.records import Prediction, Question
from dejavu.tasks.grounded_qa import Span, overlap_of, score, score_choices


def question(question_id: str, *, kind: str = "CW", spans_s: tuple[Span, ...] = ((10.0, 20.0),)) -> Question:
    return Question(
        question_id=question_id,
        clip_id=question_id.split("_", maxsplit=1)[0],
        split="val",
        kind=kind,
        text="why",
        answers=("a", "b", "c", "d", "e"),
        correct=2,
        spans_s=spans_s,
        duration_s=40.0,
    )


def answered(question_id: str, answer: int, span_s: Span) -> Prediction:
    return Prediction(question_id=question_id, answer=answer, span_s=span_s)


@pytest.mark.parametrize(
    ("predicted_s", "iop", "iou"),
    [
        ((10.0, 20.0), 1.0, 1.0),
        ((12.0, 14.0), 1.0, 0.2),
        ((0.0, 40.0), 0.25, 0.25),
        ((15.0, 25.0), 0.5, 1 / 3),
        ((20.0, 25.0), 0.0, 0.0),
        ((30.0, 35.0), 0.0, 0.0),
    ],
)
def test_overlap_is_a_share_of_the_prediction_and_of_the_hull(predicted_s: Span, iop: float, iou: float) -> None:
    assert overlap_of(predicted_s, (10.0, 20.0)) == pytest.approx((iop, iou))


@pytest.mark.parametrize(("second", "iop"), [(10.0, 1.0), (15.0, 1.0), (20.0, 1.0), (9.9, 0.0), (20.1, 0.0)])
def test_a_span_of_no_length_is_right_inside_and_covers_nothing(second: float, iop: float) -> None:
    assert overlap_of((second, second), (10.0, 20.0)) == (iop, 0.0)


def test_two_equal_spans_of_no_length_do_not_divide_by_zero() -> None:
    assert overlap_of((5.0, 5.0), (5.0, 5.0)) == (1.0, 0.0)


def test_the_metrics_follow_from_four_questions_by_hand() -> None:
    questions = [
        question("1_0", kind="CW"),
        question("1_1", kind="CH"),
        question("2_0", kind="TN"),
        question("2_1", kind="TC"),
    ]
    predictions = [
        answered("2_1", 2, (30.0, 35.0)),  # right, elsewhere
        answered("1_0", 2, (15.0, 25.0)),  # right, iop one half, iou one third
        answered("1_1", 0, (10.0, 20.0)),  # wrong at the right place
        answered("2_0", 2, (0.0, 40.0)),  # right, iop and iou one quarter
    ]
    result = score(questions, predictions)
    assert (result.num_questions, result.num_clips, result.num_without_span) == (4, 2, 0)
    assert result.acc_qa == 0.75
    assert result.acc_gqa == 0.25
    assert result.miop == pytest.approx((0.5 + 1 + 0.25) / 4)
    assert (result.tiop_03, result.tiop_05) == (0.5, 0.5)
    assert result.miou == pytest.approx((1 / 3 + 1 + 0.25) / 4)
    assert (result.tiou_03, result.tiou_05) == (0.5, 0.25)
    assert result.by_type == {"CW": 1.0, "CH": 0.0, "Bef&Aft": 1.0, "TC": 1.0, "C": 0.5, "T": 1.0}
    assert [row.grounded for row in result.rows] == [True, False, False, False]


def test_the_best_of_several_annotated_spans_counts() -> None:
    (row,) = score(
        [question("1_0", spans_s=((0.0, 5.0), (10.0, 20.0), (18.0, 40.0)))], [answered("1_0", 2, (18.0, 20.0))]
    ).rows
    assert (row.iop, row.iou) == (1.0, pytest.approx(0.2))


def test_a_question_without_annotated_span_is_counted_and_not_scored() -> None:
    result = score([question("1_0"), question("1_1", spans_s=())], [answered("1_0", 2, (10.0, 20.0))])
    assert (result.num_questions, result.num_without_span, result.acc_qa) == (1, 1, 1.0)


@pytest.mark.parametrize(
    ("predictions", "complaint"),
    [
        ([], "1 questions without a prediction .first '1_0'"),
        ([answered("1_0", 2, (0.0, 1.0))] * 2, "1 questions predicted twice"),
        ([answered("1_0", 2, (0.0, 1.0)), answered("9_9", 2, (0.0, 1.0))], "1 predictions without a question"),
        ([answered("1_0", 5, (0.0, 1.0))], "answers outside"),
        ([answered("1_0", 2, (2.0, 1.0))], "end before they start"),
        ([answered("1_0", 2, (math.nan, 1.0))], "not numbers"),
    ],
)
def test_what_does_not_pair_is_named_and_never_averaged_away(predictions: list[Prediction], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        score([question("1_0")], predictions)


def test_a_question_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="questions given twice"):
        score([question("1_0"), replace(question("1_0"), correct=0)], [answered("1_0", 2, (0.0, 1.0))])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="none with an annotated span"):
        score([question("1_0", spans_s=())], [])


def test_spans_that_leave_the_video_are_counted_and_count_as_they_are() -> None:
    """The annotated duration, 40 s, is a rounded one: half a second more may still be video."""
    spans = {"a_1": (10.0, 40.5), "a_2": (10.0, 40.6), "a_3": (-0.1, 20.0), "a_4": (0.0, 40.0)}
    questions = [question(name) for name in spans]
    result = score(questions, [answered(name, 2, span_s) for name, span_s in spans.items()])
    assert result.num_beyond_video == 2
    assert result.num_questions == 4
    assert result.rows[1].iop == pytest.approx(10 / 30.6)


def choice(name: str, correct: int) -> Question:
    return Question(
        question_id=name, clip_id=f"clip-{name[0]}", split="test", kind="MC", text="?", answers=("a", "b", "c", "d"),
        correct=correct, spans_s=(), duration_s=0.0,
    )  # fmt: skip


ASKED = [choice("a1", 0), choice("a2", 3), choice("b1", 2), choice("b2", 1)]


def test_the_share_of_right_answers() -> None:
    result = score_choices(ASKED, {"a1": 0, "a2": 0, "b1": 2, "b2": 1})
    assert result.accuracy == 0.75
    assert [row.correct for row in result.rows] == [True, False, True, True]
    assert (len(result.rows), result.text_to_video) == (4, None)


@pytest.mark.parametrize(
    "chosen",
    [{"a1": 0, "a2": 0, "b1": 2}, {"a1": 0, "a2": 0, "b1": 2, "b2": 4}, {"a1": 0, "a2": 0, "b1": 2, "b2": 1, "x": 0}],
    ids=["missing", "outside", "unasked"],
)
def test_answers_that_do_not_pair_are_refused(chosen: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="choices: got 4 questions of 4 ids"):
        score_choices(ASKED, chosen)


def test_a_question_asked_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="of 1 ids"):
        score_choices([ASKED[0], ASKED[0]], {"a1": 0})
