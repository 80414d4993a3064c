"""The comparison of our NExT-GQA scores and spans with the golden ones, for jobs/verify.py and the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dejavu.datasets.next_qa import load_frame_times, load_questions
from dejavu.records import Prediction, Question
from dejavu.tasks.grounded_qa import Span, score
from dejavu.tasks.posthoc_span import combined_span, gaussian_span, posthoc_span
from reuse_models.verify.golden import Row, judge

PERCENT_TOLERANCE = 0.051
"""One decimal is printed, so half of its last digit and a thousandth for rounding."""
SPAN_TOLERANCE_S = 1e-3

_METRICS: Mapping[str, str] = {
    "acc_gqa": "acc_gqa",
    "mIoP": "miop",
    "TIoP@0.3": "tiop_03",
    "TIoP@0.5": "tiop_05",
    "mIoU": "miou",
    "TIoU@0.3": "tiou_03",
    "TIoU@0.5": "tiou_05",
}
_TYPES: Mapping[str, str] = {
    "Why": "CW",
    "How": "CH",
    "Bef&Aft": "Bef&Aft",
    "When": "TC",
    "Acc_C": "C",
    "Acc_T": "T",
}


def check_nextgqa(predictions_json: Path, expected_json: Path, annotations: Path) -> list[Row]:
    """Score golden predictions with our code and compare with the golden scores.

    Args:
        predictions_json: `split`, `attention` and `gauss` and `qa` by question.
        expected_json: `metrics_percent` by kind of span, `posthoc_spans_seconds` by question.
        annotations: NExT-GQA's annotation files of that split.

    Raises:
        OSError: A file is missing.
        ValueError: A file does not read as expected, or names other questions than the annotations.
        KeyError: A golden file lacks an entry named above.
    """
    given = json.loads(predictions_json.read_text(encoding="utf-8"))
    expected = json.loads(expected_json.read_text(encoding="utf-8"))
    # A golden file may cover a part of the split; what it expects is then of that part.
    questions = [q for q in load_questions(annotations, given["split"]) if q.question_id in given["qa"]]
    frame_times = load_frame_times(annotations, given["split"])

    posthoc = {
        question.question_id: posthoc_span(given["attention"][question.question_id], frame_times[question.clip_id])
        for question in questions
    }
    gauss = {
        question.question_id: gaussian_span(given["gauss"][question.question_id], question.duration_s)
        for question in questions
    }
    spans = {
        "gauss": gauss,
        "posthoc": posthoc,
        "combined": {key: combined_span(gauss[key], posthoc[key]) for key in gauss},
    }
    answers = {key: entry["prediction"] for key, entry in given["qa"].items()}
    span_errors_s = [
        max(abs(ours - theirs) for ours, theirs in zip(posthoc[key], span, strict=True))
        for key, span in expected["posthoc_spans_seconds"].items()
    ]
    file = expected_json.name
    rows = [judge("nextgqa posthoc spans (s)", file, max(span_errors_s), SPAN_TOLERANCE_S)]
    for kind, kind_spans in spans.items():
        percent = expected["metrics_percent"]
        ours = _percent(questions, answers, kind_spans)
        wanted = {**percent[kind], **percent["qa_by_type"], "acc_qa": percent["acc_qa"]}
        names = list(percent[kind]) if kind != "gauss" else list(wanted)  # answers are the same for all spans
        rows += [
            judge(f"nextgqa {kind} {name} (%)", file, abs(ours[name] - wanted[name]), PERCENT_TOLERANCE)
            for name in names
        ]
    return rows


def _percent(questions: Sequence[Question], answers: Mapping[str, int], spans: Mapping[str, Span]) -> dict[str, float]:
    result = score(
        questions,
        [Prediction(question_id=key, answer=answers[key], span_s=span) for key, span in spans.items()],
    )
    shares = {name: getattr(result, field) for name, field in _METRICS.items()}
    shares |= {name: result.by_type[kind] for name, kind in _TYPES.items() if kind in result.by_type}
    return {name: 100 * share for name, share in (shares | {"acc_qa": result.acc_qa}).items()}
