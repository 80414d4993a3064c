"""Multiple choice: the share of right answers, and answers that do not pair with questions."""

from __future__ import annotations

import pytest

from dejavu.records import Question
from dejavu.tasks.multiple_choice import score_choices


def question(name: str, correct: int) -> Question:
    return Question(
        question_id=name, clip_id=f"clip-{name[0]}", split="test", kind="MC", text="?", answers=("a", "b", "c", "d"),
        correct=correct, spans_s=(), duration_s=0.0,
    )  # fmt: skip


ASKED = [question("a1", 0), question("a2", 3), question("b1", 2), question("b2", 1)]


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
