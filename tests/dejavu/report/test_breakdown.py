from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dejavu.records import EvalRow, Question
from dejavu.report.breakdown import Answered, BreakdownRow, break_down, by_question_type, by_terciles
from dejavu.storage.store import write_records
from dejavu.tasks.bootstrap import paired_bootstrap


def question(clip_id: str, number: int, kind: str) -> Question:
    return Question(
        question_id=f"{clip_id}_{number}",
        clip_id=clip_id,
        split="test",
        kind=kind,
        text="?",
        answers=("a", "b"),
        correct=0,
        spans_s=((0.0, 1.0),),
        duration_s=2.0,
    )


QUESTIONS = [question(f"c{clip}", number, kind) for clip in range(6) for number, kind in enumerate(("CW", "TN", ""))]


def row(one: Question, correct: bool, grounded: bool) -> EvalRow:
    return EvalRow(
        question_id=one.question_id, clip_id=one.clip_id, correct=correct, iop=1.0, iou=1.0, grounded=grounded
    )


DENSE = Answered("original", "dense", [row(one, True, True) for one in QUESTIONS], {f"c{i}": 1.0 for i in range(6)})
OURS = Answered(
    "cmc",
    "t=1",
    [row(one, one.kind != "TN", one.kind == "CW" and one.clip_id < "c3") for one in QUESTIONS],
    {f"c{i}": 1 - i / 10 for i in range(6)},
)


def test_types_of_question_are_told_apart_and_those_without_one_left_out() -> None:
    groups = by_question_type(QUESTIONS)
    assert [group.value for group in groups] == ["CW", "TN"]
    rows = break_down([OURS], DENSE, groups)
    assert [(one.value, one.num_questions, one.num_clips, one.accuracy, one.acc_gqa) for one in rows] == [
        ("CW", 6, 6, 1.0, 0.5),
        ("TN", 6, 6, 0.0, 0.0),
    ]
    assert (rows[1].accuracy_loss_ci_low, rows[1].accuracy_loss_ci_high) == (-1.0, -1.0)  # wrong on every clip
    assert [one.cosine_to_dense for one in rows] == [None, None]


def test_thirds_hold_the_clips_in_the_order_of_their_values() -> None:
    groups = by_terciles("motion_px", {"a": 5.0, "b": 1.0, "c": 3.0, "d": 2.0, "e": 9.0, "f": 4.0})
    assert [(group.value, sorted(group.clip_ids), group.low, group.high) for group in groups] == [
        ("low", ["b", "d"], 1.0, 2.0),
        ("middle", ["c", "f"], 3.0, 4.0),
        ("high", ["a", "e"], 5.0, 9.0),
    ]
    two = by_terciles("duration_s", {"a": 2.0, "b": 2.0, "c": 2.0, "d": 3.0})
    assert [(group.value, len(group.clip_ids)) for group in two] == [("low", 3), ("high", 1)]
    assert by_terciles("duration_s", dict.fromkeys("abc", 2.0)) == []
    assert by_terciles("motion_px", {}) == []


def test_thirds_are_scored_on_their_own_questions() -> None:
    groups = by_terciles("motion_px", {f"c{i}": float(i) for i in range(6)})
    low, middle, high = break_down([OURS], DENSE, groups, seed=3)
    assert [one.num_questions for one in (low, middle, high)] == [6, 6, 6]
    assert [one.acc_gqa for one in (low, middle, high)] == pytest.approx([1 / 3, 1 / 6, 0])
    assert [one.cosine_to_dense for one in (low, middle, high)] == pytest.approx([0.95, 0.75, 0.55])
    part = [one for one in OURS.rows if one.clip_id in ("c2", "c3")]
    dense = [one for one in DENSE.rows if one.clip_id in ("c2", "c3")]
    expected = paired_bootstrap(part, dense, "grounded", seed=3)
    assert (middle.acc_gqa_loss_ci_low, middle.acc_gqa_loss_ci_high) == (expected.low, expected.high)


def test_without_answers_only_the_cosine_is_told(tmp_path: Path) -> None:
    silent = Answered("cmc", "t=1", [], OURS.cosine_of)
    rows = break_down(
        [silent], Answered("original", "dense", [], {}), by_terciles("duration_s", {"c0": 1.0, "c5": 3.0})
    )
    write_records(tmp_path / "b.csv", BreakdownRow, rows)
    with (tmp_path / "b.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [(one["value"], one["num_questions"], one["accuracy"], one["acc_gqa"]) for one in found] == [
        ("low", "0", "", ""),
        ("high", "0", "", ""),
    ]
    assert [float(one["cosine_to_dense"]) for one in found] == [1.0, 0.5]


def test_where_nothing_says_when_answers_are_seen_there_is_no_acc_gqa() -> None:
    blind = Answered(OURS.method, OURS.setting, OURS.rows, OURS.cosine_of, has_spans=False)
    row, _ = break_down([blind], DENSE, by_terciles("duration_s", {"c0": 1.0, "c5": 2.0}))
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.acc_gqa is None
    assert by_question_type([one for one in QUESTIONS if one.kind == "CW"]) == []
