"""Every metric of every setting and kind of span, and the accuracy of each question type: task_scores.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from dejavu.records import TaskScore
from dejavu.stages.score import SettingScore
from dejavu.storage.store import write_csv
from dejavu.storage.store_path import StorePath
from dejavu.tasks.grounded_qa import TYPE_GROUPS

METRICS = tuple(field.name for field in fields(TaskScore) if field.name not in ("by_type", "rows"))
COLUMNS = ("method", "setting", "span", *METRICS, *(f"acc_qa_{kind}" for kind in TYPE_GROUPS))


def write_task_scores(path: StorePath, scores: Sequence[SettingScore]) -> None:
    """Write one row per setting and kind of span; nothing where no question was scored.

    A question type that nobody asked is an empty cell; all other values are counts or shares of 1.
    """
    rows = [_row(score, span, task) for score in scores for span, task in _tasks(score).items()]
    if rows:
        write_csv(path, COLUMNS, rows)


def _tasks(score: SettingScore) -> Mapping[str, TaskScore]:
    if score.by_span:
        return {str(span): task for span, task in score.by_span.items()}
    return {"zero_shot": score.task} if score.task else {}


def _row(score: SettingScore, span: str, task: TaskScore) -> list[object]:
    values = (getattr(task, name) for name in METRICS)
    by_type = (task.by_type.get(kind) for kind in TYPE_GROUPS)
    return [score.setting.method, score.setting.label, span, *values, *by_type]
