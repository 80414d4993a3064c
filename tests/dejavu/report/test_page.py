"""The page as a browser gets it: whole, without anything from outside, escaped, with the numbers of the CSV files."""

from __future__ import annotations

import base64
import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dejavu.records import Failure, Interval, ParetoPoint, Transcoded
from dejavu.report.breakdown import BreakdownRow
from dejavu.report.equal_flops import Lead
from dejavu.report.frontier import mark_frontier
from dejavu.report.page import Picture, RunFacts, Tables, write_report
from dejavu.report.pareto_csv import write_pareto_csv
from dejavu.report.plots import plot_pareto

NASTY = "<script>alert('x')</script> & \"q\""


def some_points() -> list[ParetoPoint]:
    original = ParetoPoint(
        method="original", setting="dense", split="test", num_clips=60, reuse_rate=0.0, gflops_per_frame=0.155,
        flops_reduction=1.0, accuracy=0.8277777, acc_gqa=0.8055555, cosine_to_dense=1.0, ms_per_frame=1.78,
        acc_gqa_ci_low=0.7555555, acc_gqa_ci_high=0.8527777, speedup=0.9963, peak_memory_mb=7.2,
    )  # fmt: skip
    near = replace(
        original, method="cmc", setting=NASTY, flops_reduction=2.0037, acc_gqa=0.8, speedup=0.972,
        reuse_rate=0.6175, acc_gqa_loss_ci_low=-0.0333333, acc_gqa_loss_ci_high=0.0222222,
    )  # fmt: skip
    far = replace(
        near, setting="t=56.9", flops_reduction=4.377, acc_gqa=0.0583333, speedup=1.3739, timed_speedup=1.6142,
        acc_gqa_loss_ci_low=-0.8, acc_gqa_loss_ci_high=-0.6916,
    )  # fmt: skip
    lead = replace(
        near, method="reusevit", setting="target=0.9", trained=True, acc_gqa=0.7666,
        acc_gqa_diff_ci_low=0.0095, acc_gqa_diff_ci_high=0.1025,
    )  # fmt: skip
    return mark_frontier([original, near, far, lead])


FACTS = RunFacts(
    recipe="demo",
    dataset=NASTY,
    num_clips=220,
    num_questions=360,
    num_without_span=2,
    missing=["lost <b>1</b>"],
    failures=[Failure(clip_id="c<1>", stage="embed", reason=NASTY)],
    num_rounds=5,
    num_streams=4,
    tags={"backbone": "embedded 17", "hardware": "2 cores", "git_commit": "abc", "data_hash": "d<a>"},
    config_yaml="recipe: demo\nprompt: '<b>{answer}</b>'\n",
)


def breakdown() -> list[BreakdownRow]:
    row = BreakdownRow(
        method="cmc", setting=NASTY, split_by="motion_px", value="low", low=0.1, high=0.6, num_clips=20,
        num_questions=120, acc_gqa=0.7416, acc_gqa_loss_ci_low=-0.05, acc_gqa_loss_ci_high=0.0501,
    )  # fmt: skip
    return [
        replace(row, method="original", setting="dense", acc_gqa=0.7499, acc_gqa_loss_ci_low=0, acc_gqa_loss_ci_high=0),
        row,
        replace(row, setting="t=56.9", acc_gqa=0.01),
    ]


LEADS = [
    Lead("reusevit", "target=0.9", 0.155 / 2, "frame_skip", Interval(low=0.0095, high=0.1025, mean=0.056)),
    Lead("reusevit", "target=0.9", 0.155 / 2, "cmc", Interval(low=-0.02, high=0.15, mean=0.07)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    points = some_points()
    write_pareto_csv(folder / "pareto.csv", points)
    plot_pareto(points, folder / "pareto.png", folder / "pareto.svg")
    pictures = {"pareto": [Picture(folder / "pareto.svg", "", "caption & more")]}
    write_report(folder / "report.html", points, Tables(breakdown(), LEADS), pictures, FACTS)
    return folder


class Page(HTMLParser):
    """The tags of a page, and its tables: rows of cells, each its text and the values of its data elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[str, list[str]]]]] = {}
        self.text = ""
        self._rows: list[list[tuple[str, list[str]]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(values.get("id") or values.get("class") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", []))
        elif tag == "data" and "table" in self._open:
            self._rows[-1][-1][1].append(values["value"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            text, values = self._rows[-1][-1]
            self._rows[-1][-1] = (text + data, values)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_nothing_comes_from_outside_and_nothing_runs(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 5 * 2**20
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"} == set()
    for tag, values in page.tags:
        for name in ("src", "href", "srcset", "action", "background", "poster"):
            assert values.get(name, "data:").startswith("data:"), (tag, values)  # type: ignore[union-attr]
        assert not [name for name in values if name.startswith("on")]
    assert re.findall(r"@import|url\(", text) == []
    policy = [values["content"] for tag, values in page.tags if values.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_plot_lies_inside_byte_for_byte(folder: Path, page: Page) -> None:
    sources = [values["src"] or "" for tag, values in page.tags if tag == "img"]
    assert [source.partition(",")[0] for source in sources] == ["data:image/svg+xml;base64"]
    assert base64.b64decode(sources[0].partition(",")[2]) == (folder / "pareto.svg").read_bytes()


def test_what_comes_from_files_is_text(page: Page) -> None:
    assert page.text.count(NASTY) >= 4  # the dataset, the reason, the setting in its tables
    for text in ("lost <b>1</b>", "c<1>", "d<a>", "prompt: '<b>{answer}</b>'", "caption & more"):
        assert text in page.text


def test_every_row_of_the_csv_is_shown_with_its_numbers(folder: Path, page: Page) -> None:
    with (folder / "pareto.csv").open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    shown = [row for row in page.tables["settings-table"] if len(row) > 1][1:]
    assert [row[0][0] for row in shown] == [row["setting"] for row in expected]
    for row, csv_row in zip(shown, expected, strict=True):
        values = [value for _, cell in row for value in cell]
        names = ["acc_gqa", "acc_gqa_loss_ci_low", "acc_gqa_loss_ci_high", "flops_reduction", "speedup"]
        if csv_row["method"] == "original":
            names = ["acc_gqa", "flops_reduction", "speedup"]
        assert values == [csv_row[name] for name in names]
        # What is read is the same number, rounded.
        assert float(row[1][0]) == pytest.approx(100 * float(csv_row["acc_gqa"]), abs=0.0501)
        assert float(row[4][0].rstrip("×")) == pytest.approx(float(csv_row["flops_reduction"]), abs=0.00501)
        assert float(row[5][0].rstrip("×")) == pytest.approx(float(csv_row["speedup"]), abs=0.00501)


def test_a_difference_inside_the_noise_is_flagged(page: Page) -> None:
    shown = {row[0][0]: row for row in page.tables["settings-table"] if len(row) > 1}
    assert "inside the noise" in shown[NASTY][3][0]
    assert "−3.3" in shown[NASTY][3][0]
    assert "below Original" in shown["t=56.9"][3][0]


def test_the_headline_is_the_best_within_two_per_cent(page: Page) -> None:
    rows = {row[0][0]: row for row in page.tables["headline-table"][2:]}
    assert rows["CMC"][1][0].strip() == "0.97×"  # t=56.9 is faster, and loses too much
    assert [cell[0].strip() for cell in rows["CMC"][4:6]] == ["2.00×", NASTY]
    assert "−0.6 points, 0.7 % below Original" in rows["CMC"][6][0]
    assert rows["ReuseViT"][1][0].strip() == "—"
    assert "no setting within 2 %" in rows["ReuseViT"][2][0]


def test_every_baseline_is_compared_at_equal_flops(page: Page) -> None:
    _, lead = page.tables["equal-flops-table"]
    assert lead[1][0].strip() == "2.00×"
    assert lead[2][1] == ["0.0095", "0.1025"]
    assert "+5.6" in lead[2][0]
    assert "ahead" in lead[2][0]
    assert "inside the noise" in lead[3][0]


def test_the_break_down_shows_original_and_the_chosen_settings(page: Page) -> None:
    rows = page.tables["breakdown-table"]
    assert [row[0][0].strip() for row in rows[1:]] == ["Original dense", f"CMC {NASTY}"]
    assert rows[2][1][1] == ["0.7416", "-0.05", "0.0501"]
    assert "0.1 to 0.6" in rows[0][1][0]


def test_a_run_without_answers_or_times_has_a_page(tmp_path: Path) -> None:
    points = [
        ParetoPoint(method=name, setting="s", split="test", num_clips=3, flops_reduction=gain, cosine_to_dense=cosine)
        for name, gain, cosine in (("original", 1.0, 1.0), ("cmc", 2.0, 0.99), ("tome", 3.0, 0.4))
    ]
    facts = replace(FACTS, num_questions=0, missing=(), failures=())
    write_report(tmp_path / "report.html", points, Tables([]), {}, facts)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    rows = {row[0][0]: row for row in page.tables["headline-table"][2:]}
    assert [cell[0].strip() for cell in rows["CMC"][1:4]] == ["—", "not timed", "2.00×"]
    assert "no setting within 2 %" in rows["ToMe"][2][0]
    assert "breakdown-table" not in page.tables
    assert "failures-table" not in page.tables
    assert "None" not in page.text.replace("None of", "")


def test_a_run_without_answers_is_about_neighbours(tmp_path: Path) -> None:
    original = ParetoPoint(
        method="original", setting="dense", split="test", num_clips=3, flops_reduction=1.0, speedup=1.0,
        cosine_to_dense=1.0, agreement=1.0, agreement_loss_ci_low=0.0, agreement_loss_ci_high=0.0,
    )  # fmt: skip
    skip = replace(
        original, method="frame_skip", setting="every=2", flops_reduction=2.0, speedup=1.9, cosine_to_dense=0.98,
        agreement=0.96, agreement_loss_ci_low=-0.06, agreement_loss_ci_high=-0.02,
    )  # fmt: skip
    facts = replace(FACTS, num_questions=0, allowed_loss=0.045)
    write_report(tmp_path / "report.html", [original, skip], Tables([]), {}, facts)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Fastest by the clock within 4.5 % of it" in page.text
    assert page.text.index("1.90× the speed") < page.text.index("2.00× fewer")
    assert "nobody has annotated answers" in page.text
    assert "since frames of one video stand and fall together" in page.text
    shown = [row for row in page.tables["settings-table"] if len(row) > 1][2]
    assert [cell[0].strip() for cell in shown[1:3]] == ["96.0", "−4.0"]
    assert shown[1][1] + shown[3][1] == ["0.96", "-0.06", "-0.02"]
    assert [cell[0].strip() for cell in page.tables["settings-table"][0]].count("NeighboursKept") == 0


def test_classes_are_told_in_their_own_table(tmp_path: Path) -> None:
    original = ParetoPoint(
        method="original", setting="dense", split="test", num_clips=50, flops_reduction=1.0, accuracy=0.84,
        accuracy_loss_ci_low=0.0, accuracy_loss_ci_high=0.0, knn_accuracy=0.8, cosine_to_dense=1.0, agreement=1.0,
    )  # fmt: skip
    skip = replace(
        original, method="frame_skip", setting="every=2", flops_reduction=2.0, accuracy=0.82, knn_accuracy=0.76,
        accuracy_loss_ci_low=-0.06, accuracy_loss_ci_high=0.02, knn_accuracy_loss_ci_low=-0.12,
        knn_accuracy_loss_ci_high=0.01, agreement=0.7,
    )  # fmt: skip
    row = BreakdownRow(
        method="original", setting="dense", split_by="class", value="fight", low=None, high=None, num_clips=24,
        num_questions=24, accuracy=0.9,
    )  # fmt: skip
    parts = [row, *(replace(row, value=str(number), split_by="duration_s") for number in range(17))]
    write_report(tmp_path / "report.html", [original, skip], Tables(parts), {}, replace(FACTS, num_questions=50))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "84.0 % top-1 accuracy (clips whose class a linear probe on Original's embeddings tells) on 50" in page.text
    shown = page.tables["class-table"][2]
    assert [cell[1] for cell in shown[1:]] == [["0.82", "-0.06", "0.02"], ["0.76", "-0.12", "0.01"]]  # no zero-shot
    assert [cell[0].strip() for cell in page.tables["settings-table"][4]][9] == "70.0 %"
    assert "By class" in text
    assert "By length" not in text  # 17 columns do not fit
    assert "question" not in page.text


def test_clips_that_are_odd_but_used_are_named(tmp_path: Path) -> None:
    clip = Transcoded(
        clip_id="d<1>", content_id="c", path="mp4/c.mp4", num_frames=9, frame_px=64, fps=2.0, duration_s=4.5,
        codec_metadata=True, num_damaged=2, num_missing=1, damaged_share=0.0125,
    )  # fmt: skip
    odd = [clip, replace(clip, clip_id="j", num_damaged=0, num_missing=0, damaged_share=0.0, remarks=NASTY)]
    write_report(tmp_path / "r.html", some_points(), Tables(breakdown()), {}, replace(FACTS, odd=odd))
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "1 clips have damaged or missing pictures, 2 and 1 in all" in page.text
    rows = [[text for text, _ in row] for row in page.tables["odd-table"]]
    assert rows[1:] == [["d<1>", "2", "1", "1.25 %", ""], ["j", "0", "0", "0.00 %", NASTY]]


def test_retrieval_is_called_retrieval(tmp_path: Path) -> None:
    original = ParetoPoint(
        method="original", setting="dense", split="test", num_clips=4, flops_reduction=1.0, accuracy=0.75,
        recall_at_5=0.875, recall_at_10=1.0, median_rank=1.0, video_to_text_recall_at_1=0.5,
        video_to_text_recall_at_5=0.625, video_to_text_recall_at_10=0.9, video_to_text_median_rank=1.5,
        ms_per_frame=6.0, decode_ms_per_frame=3.0, codec_ms_per_frame=1.0,
    )  # fmt: skip
    points = [original, replace(original, method="cmc", setting="t=3", flops_reduction=2.0, accuracy=0.5)]
    write_report(tmp_path / "report.html", points, Tables([]), {}, replace(FACTS, num_questions=4))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Original's R@1" in page.text
    assert "4 captions about 4 test clips" in page.text
    assert "Acc@" not in page.text
    assert "question" not in page.text.replace("recipe: demo", "")
    row = [cell[0].strip() for cell in page.tables["recall-table"][2]]
    assert row == ["Original dense", "75.0", "87.5", "100.0", "1.0", "50.0", "62.5", "90.0", "1.5"]
    settings = [row for row in page.tables["settings-table"] if len(row) > 1]
    assert [row[10][0].strip() for row in settings[1:]] == ["30 %, 10 %"] * 2  # of 6 + 3 + 1 ms
