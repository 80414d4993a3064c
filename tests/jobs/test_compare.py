"""Two results folders in one plot, as a person compares two runs or two machines."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import compare
import pytest
from matplotlib.image import imread

from dejavu.records import ParetoPoint
from dejavu.report.pareto_csv import write_pareto_csv

POINTS = [
    ParetoPoint(
        method=method, setting=setting, split="test", num_clips=9, flops_reduction=gain, acc_gqa=quality, speedup=pace,
        ms_per_frame=2 / pace, cosine_to_dense=quality + 0.1,
    )
    for method, setting, gain, quality, pace in (
        ("original", "dense", 1.0, 0.80, 1.0),
        ("cmc", "t=1", 2.0, 0.79, 0.8),
        ("cmc", "t=9", 4.0, 0.40, 1.6),
    )
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The same settings on a machine that is twice as fast, one of them missing and one new."""
    faster = [replace(point, ms_per_frame=point.ms_per_frame / 2, acc_gqa=point.acc_gqa + 0.01) for point in POINTS[:2]]  # type: ignore[operator]
    faster.append(replace(POINTS[2], method="tome", setting="r=4"))
    paths = tmp_path / "laptop" / "pareto.csv", tmp_path / "server" / "pareto.csv"
    write_pareto_csv(paths[0], POINTS)
    write_pareto_csv(paths[1], faster)
    return paths


def test_two_runs_stand_in_one_plot_and_one_table(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare.png"
    assert compare.main([*map(str, runs), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "A: laptop, 3 settings; B: server, 3 settings" in said
    assert "2 settings in both" in said
    line = next(line.split() for line in said.splitlines() if line.startswith("CMC"))
    assert line == ["CMC", "t=1", "79.00", "80.00", "+1.00", "2.00", "2.00", "0.80", "0.80", "2.50", "1.25", "2.00"]
    with (tmp_path / "compare.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["setting"]) for row in rows] == [("original", "dense"), ("cmc", "t=1")]
    assert float(rows[1]["ms_per_frame_b"]) == 1.25
    assert imread(out).shape[1] > 1.5 * imread(out).shape[0]  # FLOPs and time


def test_a_smaller_tower_stands_on_the_scale_of_the_first(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = [replace(point, gflops_per_frame=12 / point.flops_reduction) for point in POINTS]  # type: ignore[operator]
    small = [
        replace(point, gflops_per_frame=3 / point.flops_reduction, ms_per_frame=point.ms_per_frame / 3)  # type: ignore[operator]
        for point in POINTS
    ]
    for path, points in zip(runs, (large, small), strict=True):
        write_pareto_csv(path, points)
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "c.png")]) == 0
    said = capsys.readouterr().out
    assert "two towers: gains of server are counted from the Original of laptop" in said
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    reductions = [(float(row["flops_reduction_a"]), float(row["flops_reduction_b"])) for row in rows]
    assert reductions == [(1.0, 4.0), (2.0, 8.0), (4.0, 16.0)]
    assert [float(row["speedup_b"]) for row in rows] == pytest.approx([3.0, 2.4, 4.8])

    carried = [replace(point, speedup=0.5 * (point.speedup or 0), timed_speedup=point.speedup) for point in small]
    write_pareto_csv(runs[1], carried)
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "c.png")]) == 0
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        assert [float(row["speedup_b"]) for row in csv.DictReader(file)] == pytest.approx([1.5, 1.2, 2.4])

    for path, points in zip(runs, (large, small), strict=True):
        write_pareto_csv(path, [replace(point, acc_gqa=None) for point in points])
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "d.png")]) == 1
    assert "of two towers with cosines to each one's own Original, expected answers" in capsys.readouterr().err


def test_without_times_there_is_one_panel(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_pareto_csv(runs[1], [replace(point, speedup=None, ms_per_frame=None) for point in POINTS])
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "c.png"), "--names", "old", "new"]) == 0
    picture = imread(tmp_path / "c.png")
    assert picture.shape[1] < 1.5 * picture.shape[0]


def test_a_file_of_an_older_version_is_compared_by_what_it_has(runs: tuple[Path, Path], tmp_path: Path) -> None:
    old = "method,setting,split,num_clips,flops_reduction,acc_gqa,gone\ncmc,t=1,test,9,2.5,0.7,x\n"
    runs[0].write_text(old, encoding="utf-8")
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "c.png")]) == 0
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["flops_reduction_a"], row["flops_reduction_b"], row["speedup_a"]) == ("2.5", "2.0", "")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("method,split,num_clips\ncmc,test,9\n", "columns: got method,split,num_clips, expected method,setting,split"),
        ("method,split,num_clips\ncmc,test,9\n", "(not there: setting); take a pareto.csv of this version"),
        ("method,setting,split,num_clips\ncmc,t=1,test,9\n", "without a measure that every point of both has"),
        ("method,setting,split,num_clips,acc_gqa\ncmc,t=1,test,9,0.5\n", "got no flops_reduction or speedup in both"),
        ("method,setting,split,num_clips,acc_gqa\ncmc,t=1,test,9,high\n", "line 2: got could not convert"),
    ],
)
def test_a_column_that_is_missing_is_one_line(
    runs: tuple[Path, Path], tmp_path: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs[0].write_text(text, encoding="utf-8")
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "c.png")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert line in said
    assert said.count("\n") == 1
    assert not (tmp_path / "c.png").exists()
