"""Where a setting gains or loses: its scores by type of question, by motion and by length of the clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dejavu.records import EvalRow, Question
from dejavu.tasks.bootstrap import Metric, bootstrap, clustered_interval, paired_bootstrap
from dejavu.tasks.neighbours import Agreement

SplitBy = Literal["question_type", "class", "motion_px", "duration_s"]
THIRDS = ("low", "middle", "high")
"""Values of a split into terciles."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the clips, or the questions of one type."""

    split_by: SplitBy
    value: str
    clip_ids: frozenset[str]
    low: float | None = None
    """Smallest and largest value among the clips of a tercile."""
    high: float | None = None
    question_ids: frozenset[str] | None = None
    """None for all questions about the clips."""

    def rows(self, rows: Sequence[EvalRow]) -> list[EvalRow]:
        """Return the scored questions that belong here."""
        if self.question_ids is not None:
            return [row for row in rows if row.question_id in self.question_ids]
        return [row for row in rows if row.clip_id in self.clip_ids]


@dataclass(frozen=True, slots=True)
class Answered:
    """One setting on all clips."""

    method: str
    setting: str
    rows: Sequence[EvalRow]
    """Scored questions; none for a dataset without answers."""
    cosine_of: Mapping[str, float]
    """Clip id -> mean cosine of its frames to Original's."""
    has_spans: bool = True
    """Whether the questions say when their answers are seen, so that Acc@GQA means something."""
    agreement: Agreement | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakdownRow:
    """One row of breakdown.csv: a setting on one group. Names and units as in pareto.csv."""

    method: str
    setting: str
    split_by: str
    value: str
    low: float | None
    high: float | None
    num_clips: int
    num_questions: int
    accuracy: float | None = None
    accuracy_ci_low: float | None = None
    accuracy_ci_high: float | None = None
    accuracy_loss_ci_low: float | None = None
    accuracy_loss_ci_high: float | None = None
    acc_gqa: float | None = None
    acc_gqa_ci_low: float | None = None
    acc_gqa_ci_high: float | None = None
    acc_gqa_loss_ci_low: float | None = None
    acc_gqa_loss_ci_high: float | None = None
    cosine_to_dense: float | None = None
    """Mean over the clips, each weighing the same; None for types of question, which share clips. So is agreement."""
    agreement: float | None = None
    """Mean over the frames of these clips; their neighbours may be of any other clip."""
    agreement_ci_low: float | None = None
    agreement_ci_high: float | None = None
    agreement_loss_ci_low: float | None = None
    agreement_loss_ci_high: float | None = None


def by_question_type(
    questions: Sequence[Question], split_by: Literal["question_type", "class"] = "question_type"
) -> list[Group]:
    """Group questions by their type; those without one are left out, and where all are alike there is no group.

    Of clips in classes, the type is the class, and each clip is in one group.
    """
    kinds = sorted({question.kind for question in questions if question.kind})
    if len(kinds) < 2:
        return []
    members = {kind: [question for question in questions if question.kind == kind] for kind in kinds}
    return [
        Group(
            split_by,
            kind,
            frozenset(question.clip_id for question in some),
            question_ids=frozenset(question.question_id for question in some) if split_by == "question_type" else None,
        )
        for kind, some in members.items()
    ]


def by_terciles(split_by: SplitBy, value_of: Mapping[str, float]) -> list[Group]:
    """Cut clips into thirds by a value; equal values stay together, so that thirds may differ in size or be absent.

    Where all values are alike there is no group.
    """
    if not value_of:
        return []
    first, second = np.quantile(list(value_of.values()), [1 / 3, 2 / 3])
    members: dict[str, list[str]] = {name: [] for name in THIRDS}
    for clip_id, value in value_of.items():
        members[THIRDS[int(value > first) + int(value > second)]].append(clip_id)
    if sum(bool(some) for some in members.values()) < 2:
        return []
    return [
        Group(split_by, name, frozenset(some), min(value_of[one] for one in some), max(value_of[one] for one in some))
        for name, some in members.items()
        if some
    ]


def break_down(
    settings: Sequence[Answered], original: Answered, groups: Sequence[Group], *, seed: int = 0
) -> list[BreakdownRow]:
    """Score every setting on every group, with 95 % intervals over resampled videos; losses are against `original`."""
    return [_row(setting, original, group, seed) for setting in settings for group in groups]


def _row(setting: Answered, original: Answered, group: Group, seed: int) -> BreakdownRow:
    rows, dense = group.rows(setting.rows), group.rows(original.rows)
    cosines = [setting.cosine_of[clip_id] for clip_id in sorted(group.clip_ids) if clip_id in setting.cosine_of]
    whole = group.question_ids is None
    return BreakdownRow(
        method=setting.method,
        setting=setting.setting,
        split_by=group.split_by,
        value=group.value,
        low=group.low,
        high=group.high,
        num_clips=len(group.clip_ids),
        num_questions=len(rows),
        cosine_to_dense=float(np.mean(cosines)) if cosines and whole else None,
        **metric_columns("accuracy", "correct", rows, dense, seed),
        **(metric_columns("acc_gqa", "grounded", rows, dense, seed) if setting.has_spans else {}),
        **(agreement_columns(setting.agreement, group.clip_ids, seed) if setting.agreement and whole else {}),
    )


def agreement_columns(agreement: Agreement, clip_ids: Iterable[str], seed: int) -> dict[str, Any]:
    """Return the agreement of some clips' frames and its intervals; nothing where none of their frames is a query.

    Original agrees with itself, so that the difference to it has the same interval, one below.
    """
    shares, clips = agreement.of(sorted(clip_ids))
    if not shares:
        return {}
    found = clustered_interval(np.array(shares), clips, seed=seed)
    return {
        "agreement": found.mean,
        "agreement_ci_low": found.low,
        "agreement_ci_high": found.high,
        "agreement_loss_ci_low": found.low - 1,
        "agreement_loss_ci_high": found.high - 1,
    }


def metric_columns(
    name: str, metric: Metric, rows: Sequence[EvalRow], dense: Sequence[EvalRow], seed: int
) -> dict[str, Any]:
    """Return a metric, its interval and that of its paired difference to Original; nothing without questions."""
    if not rows:
        return {}
    alone, difference = bootstrap(rows, metric, seed=seed), paired_bootstrap(rows, dense, metric, seed=seed)
    return {
        name: alone.mean,
        f"{name}_ci_low": alone.low,
        f"{name}_ci_high": alone.high,
        f"{name}_loss_ci_low": difference.low,
        f"{name}_loss_ci_high": difference.high,
    }
