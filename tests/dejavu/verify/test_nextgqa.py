from __future__ import annotations

import json
from pathlib import Path

import pytest

from dejavu.verify.nextgqa import check_nextgqa


def test_scores_and_spans_equal_the_golden_ones(shared_dir: Path) -> None:
    golden = shared_dir / "golden"
    compared = check_nextgqa(
        golden / "nextgqa_predictions.json", golden / "nextgqa_expected.json", shared_dir / "data" / "nextgqa"
    )
    assert len(compared) == 1 + 3 * 7 + 7
    assert {line.name: line.largest_error for line in compared if not line.largest_error <= line.tolerance} == {}


def test_a_golden_file_with_another_number_is_noticed(shared_dir: Path, tmp_path: Path) -> None:
    golden = shared_dir / "golden"
    expected = json.loads((golden / "nextgqa_expected.json").read_text())
    expected["metrics_percent"]["combined"]["mIoU"] += 0.1
    first = next(iter(expected["posthoc_spans_seconds"].values()))
    first[1] += 0.01
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    compared = check_nextgqa(
        golden / "nextgqa_predictions.json", tmp_path / "expected.json", shared_dir / "data" / "nextgqa"
    )
    wrong = {line.name: line.largest_error for line in compared if line.largest_error > line.tolerance}
    assert set(wrong) == {"nextgqa posthoc spans (s)", "nextgqa combined mIoU (%)"}
    assert wrong["nextgqa posthoc spans (s)"] == pytest.approx(0.01)
