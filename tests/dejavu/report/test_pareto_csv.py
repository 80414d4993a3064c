from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dejavu.records import ParetoPoint
from dejavu.report.pareto_csv import read_pareto_csv, write_pareto_csv

POINTS = [
    ParetoPoint(
        method="original", setting="", split="test", num_clips=60, accuracy=1 / 3, trained=None, on_frontier=True
    ),
    ParetoPoint(
        method="reusevit", setting='R=4, "anchor"', split="test", num_clips=60, cosine_to_dense=0.1 + 0.2, trained=False
    ),
]


def test_points_read_back_equal(tmp_path: Path) -> None:
    write_pareto_csv(tmp_path / "pareto.csv", POINTS)
    assert read_pareto_csv(tmp_path / "pareto.csv") == POINTS
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.csv"]


def test_the_columns_begin_as_promised_and_absent_values_are_empty(tmp_path: Path) -> None:
    write_pareto_csv(tmp_path / "pareto.csv", POINTS)
    header, first, _ = csv.reader((tmp_path / "pareto.csv").read_text().splitlines())
    promised = (
        "method,setting,split,num_clips,reuse_rate,gflops_per_frame,flops_reduction,accuracy,acc_gqa,miop,miou,"
        "cosine_to_dense,ms_per_frame"
    )
    assert header[:13] == promised.split(",")
    assert first[:8] == ["original", "", "test", "60", "", "", "", repr(1 / 3)]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pareto_csv(tmp_path / "pareto.csv", POINTS)

    def full_disk(path: Path, text: str, encoding: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_pareto_csv(tmp_path / "pareto.csv", POINTS[:1])
    assert read_pareto_csv(tmp_path / "pareto.csv") == POINTS


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [("method,", "way,", "columns: got way"), ("60", "many", "line 2: got invalid literal")],
)
def test_another_file_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    write_pareto_csv(tmp_path / "pareto.csv", POINTS)
    text = (tmp_path / "pareto.csv").read_text()
    (tmp_path / "pareto.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=complaint):
        read_pareto_csv(tmp_path / "pareto.csv")


def test_a_speed_up_from_before_it_was_carried_to_all_clips_is_carried(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    lines = ["method,setting,split,num_clips,flops_reduction,speedup,timed_flops_reduction"]
    lines += ["adaptive_skip,t=1,test,9,2.0,3.6,4.0", "original,dense,test,9,1.0,,"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    skip, original = read_pareto_csv(path, ("method", "setting", "split", "num_clips"))
    assert (skip.speedup, skip.timed_speedup) == (1.8, 3.6)
    assert (original.speedup, original.timed_speedup) == (None, None)
