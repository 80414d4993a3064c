"""What the page says of a run, and what is refused before any work; the runs themselves are the pipeline's."""

from __future__ import annotations

from pathlib import Path

import evidence
import pytest

from dejavu.records import ParetoPoint
from dejavu.report.breakdown import BreakdownRow
from dejavu.report.pareto_csv import write_pareto_csv
from dejavu.storage.store import write_records


def point(method: str, setting: str, speedup: float, **values: float) -> ParetoPoint:
    times = {"ms_per_frame": 40.0, "decode_ms_per_frame": 10.0, "codec_ms_per_frame": 5.0}
    return ParetoPoint(
        method=method,
        setting=setting,
        split="test",
        num_clips=7,
        speedup=speedup,
        timed_speedup=1.5 * speedup,
        **times | values,
    )


def test_the_fastest_comes_first_and_empty_columns_are_left_out() -> None:
    points = [
        point("original", "", 1.0, cosine_to_dense=1.0),
        point("frame_skip", "every=2", 2.0, agreement=0.9, agreement_ci_low=0.85, agreement_ci_high=0.95),
    ]
    lines = evidence.table(points).splitlines()
    assert lines[0] == "| setting | by the clock | timed: clock | timed: with decoding | agreement [95 %] | cosine |"
    assert lines[2] == "| FrameSkip every=2 | 2.00 | 3.00 | 2.60 | 0.900 [0.850, 0.950] |  |"
    assert lines[3].startswith("| Original | 1.00 | 1.50 | 1.40 |")


def test_only_what_reads_a_codec_grid_pays_for_it() -> None:
    skip, reuse = (point(method, "", 2.0) for method in ("frame_skip", "reusevit"))
    assert evidence.with_decoding(skip) == pytest.approx((120 + 10) / (40 + 10))
    assert evidence.with_decoding(reuse) == pytest.approx((120 + 10) / (40 + 10 + 5))
    assert evidence.with_decoding(ParetoPoint(method="cmc", setting="", split="test", num_clips=1)) is None


def test_the_page_has_each_set_with_its_command(tmp_path: Path) -> None:
    videos = tmp_path / "clips"
    videos.mkdir()
    job = evidence.Evidence(sets=(f"folder:2:{videos}",), backbone="embedded", out=tmp_path / "out")
    (job.out / "clips").mkdir(parents=True)
    write_pareto_csv(job.out / "clips" / "pareto.csv", [point("tome", "r=8", 1.25, agreement=0.9)])
    thirds = [
        BreakdownRow(
            method="tome", setting="r=8", split_by="motion_px", value=third, low=low, high=low + 1, num_clips=2,
            num_questions=0, cosine_to_dense=0.99, agreement=1 - low / 10,
        )
        for third, low in (("low", 0.0), ("middle", 1.0), ("high", 2.0))
    ]  # fmt: skip
    write_records(job.out / "clips" / "breakdown.csv", BreakdownRow, thirds)
    sets = [evidence.VideoSet.parse(text) for text in job.sets]
    page = evidence.page(sets, job, [61.0])
    assert "## clips, 2 frames a second" in page
    assert f"pipeline.py folder --videos {videos} --transcode.fps 2 --backbone embedded" in page
    assert "7 test clips; 61 s" in page
    assert "![Quality against the clock and computation](clips/pareto.png)" in page
    assert "| ToMe r=8 | 1.25 |" in page
    assert "| agreement where motion is | low, 0 to 1 px | middle, 1 to 2 px | high, 2 to 3 px |" in page
    assert "| ToMe r=8 | 1.000 | 0.900 | 0.800 |" in page

    write_pareto_csv(job.out / "clips" / "pareto.csv", [point("tome", "r=8", 1.25, agreement=0.9, accuracy=0.5)])
    assert "(clips/agreement.png)" in evidence.page(sets, job, [61.0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folder:2", "expected folder or classes"),
        ("folder:x:.", "'folder:x:.'"),
        ("demo:2:.", "'demo:2:.'"),
        ("folder:0:.", "frames a second"),
        ("classes:8:nowhere", "which is no folder"),
    ],
)
def test_a_set_that_is_none_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.main(["--sets", text, "--backbone", "embedded", "--out", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_two_sets_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "clips").mkdir(parents=True)
    sets = [f"folder:2:{tmp_path / parent / 'clips'}" for parent in ("a", "b")]
    assert evidence.main(["--sets", *sets, "--backbone", "embedded", "--out", str(tmp_path / "out")]) == 1
    assert "two folders of one name" in capsys.readouterr().err
