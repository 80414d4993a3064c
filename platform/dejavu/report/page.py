"""One run as a page: what was found, how sure it is, and what it was found with, in one HTML file that opens anywhere.

The page loads nothing: pictures and style lie inside. Whatever comes from files or names is escaped by the template.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dejavu.records import Failure, Interval, ParetoPoint, Transcoded
from dejavu.report.breakdown import BreakdownRow
from dejavu.report.equal_flops import Lead
from dejavu.report.frontier import MAX_LOSS, ORIGINAL, original_quality, quality_of, words_of
from dejavu.report.headline import (
    WORST,
    dominated_area,
    dominators,
    headlines,
    loss_interval,
    own_interval,
    per_cent,
    relative_text,
    summarise,
    verdict,
)
from dejavu.report.style import styles_of
from dejavu.storage.store import write_text
from dejavu.storage.store_path import StorePath

TEMPLATE = "report.html.jinja"
NONE = "—"
"""Stands where there is no number."""
KIND_NAMES = {
    "CW": "causal, why",
    "CH": "causal, how",
    "TN": "temporal, what next",
    "TP": "temporal, what before",
    "TC": "temporal, what meanwhile",
}
"""NExT-QA's types of question, spelt out."""
SPLIT_NAMES = {
    "question_type": ("By type of question", ""),
    "class": ("By class", ""),
    "motion_px": ("By motion", "mean length of the codec's motion vectors, pixels a frame, thirds of the clips"),
    "duration_s": ("By length of the video", "seconds, thirds of the clips"),
}
MAX_COLUMNS = 16
"""Of a break-down on the page; a split into more parts, such as hundreds of classes, is in breakdown.csv alone."""
MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that goes into the page."""

    path: StorePath
    """A PNG or SVG."""
    heading: str
    caption: str

    @property
    def data(self) -> str:
        """The file as a data URI: inside an image, an SVG runs no script and its ids meet no others."""
        return f"data:{MEDIA_TYPES[self.path.suffix]};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a run was, beside its points. Everything is shown as it stands here."""

    recipe: str
    dataset: str
    num_clips: int
    """That the dataset has in all splits."""
    num_questions: int
    """Or captions, scored on test clips."""
    num_without_span: int
    """Questions about test clips that were left out because nothing is annotated for them."""
    missing: Sequence[str]
    """Clips that annotations name and the folder lacks."""
    failures: Sequence[Failure]
    num_rounds: int
    """Of the timing pass."""
    num_streams: int
    """Clips that it encodes side by side, at most."""
    tags: Mapping[str, str]
    """Commit, hashes, backbone, hardware, as MLflow has them."""
    config_yaml: str
    allowed_loss: float = MAX_LOSS
    """The share of Original's quality that the headline's settings may lose."""
    odd: Sequence[Transcoded] = ()
    """Clips that were damaged, or about which there is a remark."""

    @property
    def damaged(self) -> list[Transcoded]:
        """Clips with damaged or missing pictures, which were concealed."""
        return [clip for clip in self.odd if clip.damaged_share > 0]


@dataclass(frozen=True, slots=True)
class Tables:
    """What else was counted."""

    breakdown: Sequence[BreakdownRow]
    """As in breakdown.csv."""
    leads: Sequence[Lead] = ()
    """As in equal_flops.csv."""


def write_report(
    path: StorePath,
    points: Sequence[ParetoPoint],
    tables: Tables,
    pictures: Mapping[str, Sequence[Picture]],
    facts: RunFacts,
) -> None:
    """Write the page, a single file, whole or not at all.

    Pictures are those of the sections `pareto`, `drift` and `reuse`; a section without any is left out.

    Raises:
        ValueError: There is not exactly one Original, or no measure that all points have.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ratio": _ratio, "number": _number}
    write_text(path, environment.get_template(TEMPLATE).render(**_context(points, tables, pictures, facts)))


def _context(
    points: Sequence[ParetoPoint],
    tables: Tables,
    pictures: Mapping[str, Sequence[Picture]],
    facts: RunFacts,
) -> dict[str, Any]:
    quality = quality_of(points)
    original = next(point for point in points if point.method == ORIGINAL)
    every, words = headlines(points, quality, facts.allowed_loss), words_of(points, quality)
    is_share = quality != "cosine_to_dense"
    shown = {id(one) for head in every for one in (head.best, head.fastest)} | {id(original)}
    chosen = {(point.method, point.setting) for point in points if id(point) in shown}
    return {
        "points": list(zip(points, dominators(points, quality), strict=True)),
        "original": original,
        "dense": original_quality(points, quality),
        "quality": quality,
        "quality_name": words.name,
        "quality_meaning": words.meaning,
        "item": words.item,
        "is_share": is_share,
        "headlines": every,
        "total_area": dominated_area([point for point in points if point.method != ORIGINAL], quality),
        "worst": WORST,
        "max_loss": facts.allowed_loss,
        "has_answers": quality not in ("agreement", "cosine_to_dense"),
        "summary": summarise(points, quality, facts.num_questions, facts.allowed_loss),
        "baselines": list(dict.fromkeys(lead.baseline for lead in tables.leads)),
        "leads": _leads(tables.leads, original.gflops_per_frame or 0.0),
        "splits": _splits([row for row in tables.breakdown if (row.method, row.setting) in chosen], quality),
        "pictures": pictures,
        "facts": facts,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "style": lambda method: styles_of([method])[method],
        "value": lambda one: getattr(one, quality),
        "loss_interval": lambda one: loss_interval(one, quality),
        "own_interval": lambda one: own_interval(one, quality),
        "verdict": lambda one: verdict(one, quality),
        "relative": relative_text,
        "per_cent": per_cent,
        "dash": NONE,
    }


def _leads(rows: Sequence[Lead], dense_gflops: float) -> list[tuple[str, str, float, dict[str, Interval]]]:
    """Return method, setting, FLOP reduction and the lead over each baseline, setting by setting."""
    by_setting: dict[tuple[str, str, float], dict[str, Interval]] = {}
    for row in rows:
        key = (row.method, row.setting, dense_gflops / row.gflops_per_frame)
        by_setting.setdefault(key, {})[row.baseline] = row.difference
    return [(*key, found) for key, found in by_setting.items()]


def _splits(rows: Sequence[BreakdownRow], quality: str) -> list[dict[str, Any]]:
    """Lay rows out as one table per split: a line per setting, a column per group."""
    tables = []
    for split_by, (heading, unit) in SPLIT_NAMES.items():
        members = [row for row in rows if row.split_by == split_by and getattr(row, quality) is not None]
        if not members:
            continue
        groups = list({row.value: row for row in members}.values())
        if len(groups) > MAX_COLUMNS:
            continue
        settings = list(dict.fromkeys((row.method, row.setting) for row in members))
        cells = {(row.method, row.setting, row.value): row for row in members}
        tables.append(
            {
                "heading": heading,
                "unit": unit,
                "columns": [(KIND_NAMES.get(group.value, group.value), group) for group in groups],
                "lines": [
                    (method, setting, [cells.get((method, setting, group.value)) for group in groups])
                    for method, setting in settings
                ],
            }
        )
    return tables


def _number(value: float | None, digits: int = 2, scale: float = 1.0, sign: str = "") -> str:
    """Write a number, or a dash for None. A minus is a minus sign; `sign="+"` shows a plus."""
    if value is None:
        return NONE
    text = f"{scale * value:{sign}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"
