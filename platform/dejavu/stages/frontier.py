"""Gather accuracy, computation and time of every setting into points: CSV, plot and MLflow."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import yaml

from dejavu.cluster.cluster import PACKAGES_ROOT
from dejavu.observability.tracking import Run, Tracking
from dejavu.records import ParetoPoint
from dejavu.report.breakdown import agreement_columns, metric_columns
from dejavu.report.equal_flops import Item, Lead, Scored, leads
from dejavu.report.frontier import (
    GAINS,
    MAX_LOSS,
    Quality,
    best_within,
    has_agreement_beside,
    mark_frontier,
    quality_of,
    words_of,
)
from dejavu.report.headline import headlines
from dejavu.report.pareto_csv import write_pareto_csv
from dejavu.report.pareto_view import VIEW_ID, VIEW_NAME, saved_view
from dejavu.report.plots import plot_pareto
from dejavu.report.style import styles_of
from dejavu.stages.measure import Timing
from dejavu.stages.score import SettingScore
from dejavu.storage.store_path import StorePath, is_file
from dejavu.tasks.class_readers import Reader
from reuse_models.artifact import flops as flops_published
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape

PARAMETER_FIELDS = ("method", "setting", "split", "num_clips")
TAG_FIELDS = ("trained", "on_frontier", "dense_precision")
ARTIFACTS = (
    "report.html",
    "pareto.png",
    "pareto.svg",
    "agreement.png",
    "agreement.svg",
    "pareto.csv",
    "breakdown.csv",
    "drift.csv",
    "equal_flops.csv",
    "task_scores.csv",
    "config.yaml",
    "failures.csv",
    "damaged.csv",
    "remarks.csv",
)
"""Of a run, where they are."""
READER_COLUMNS: Mapping[Reader, str] = {"nearest": "knn_accuracy", "zero_shot": "zero_shot_accuracy"}
FIRST_METRICS = ("accuracy", "acc_gqa", "gflops_per_frame")
"""MLflow's compare page begins with what was logged first."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was measured on test clips. The first score is Original's."""

    scores: Sequence[SettingScore]
    timings: Mapping[str, Timing]
    """By setting id; a setting that was not timed is absent."""
    shape: VitShape
    """Of the tower."""
    seed: int
    """Of the bootstrap."""


def gather_points(evidence: Evidence) -> list[ParetoPoint]:
    """Turn scores and timings into points, Original first, each with its intervals."""
    original = evidence.scores[0]
    return mark_frontier([_point(score, original, evidence) for score in evidence.scores])


def _point(score: SettingScore, original: SettingScore, evidence: Evidence) -> ParetoPoint:
    timing, task, config = evidence.timings.get(score.setting.setting_id), score.task, score.setting.config
    flops_reduction = original.gflops_per_frame / score.gflops_per_frame
    timed_reduction = original.gflops_per_frame / timing.gflops_per_frame if timing else None
    return ParetoPoint(
        method=score.setting.method,
        setting=score.setting.label,
        split="test",
        num_clips=score.num_clips,
        reuse_rate=score.reuse_rate,
        gflops_per_frame=score.gflops_per_frame,
        flops_reduction=flops_reduction,
        miop=task.miop if task else None,
        miou=task.miou if task else None,
        cosine_to_dense=score.cosine_to_dense,
        flops_reduction_published=_reduction_published(score, original, evidence.shape),
        ms_per_frame=timing.ms_per_frame if timing else None,
        speedup=timing.speedup * flops_reduction / timed_reduction if timing and timed_reduction else None,
        dense_precision=timing.dense if timing else None,
        timed_flops_reduction=timed_reduction,
        timed_speedup=timing.speedup if timing else None,
        peak_memory_mb=timing.peak_memory_mb if timing else None,
        decode_ms_per_frame=timing.decode_ms_per_frame if timing else None,
        codec_ms_per_frame=timing.codec_ms_per_frame if timing else None,
        trained=config.weights is not None if isinstance(config, ReuseVitConfig | ResidualVitConfig) else None,
        **metric_columns("accuracy", "correct", score.rows, original.rows, evidence.seed),
        **(metric_columns("acc_gqa", "grounded", score.rows, original.rows, evidence.seed) if task else {}),
        **_recalls(score),
        **_other_readers(score, original, evidence.seed),
        **_difference(score, evidence),
        **(agreement_columns(score.agreement, score.agreement.by_clip, evidence.seed) if score.agreement else {}),
    )


def _other_readers(score: SettingScore, original: SettingScore, seed: int) -> dict[str, Any]:
    """Return the columns of what tells a clip's class beside the linear probe; nothing where clips have no classes."""
    columns: dict[str, Any] = {}
    for reader, name in READER_COLUMNS.items():
        if reader in score.by_reader:
            ours, dense = score.by_reader[reader], original.by_reader[reader]
            columns |= metric_columns(name, "correct", ours.rows, dense.rows, seed)
    return columns


def _recalls(score: SettingScore) -> dict[str, Any]:
    """Return retrieval's columns; nothing where nothing was retrieved."""
    if score.answers is None or score.answers.text_to_video is None or score.answers.video_to_text is None:
        return {}
    found, back = score.answers.text_to_video, score.answers.video_to_text
    return {
        "recall_at_5": found.at_5,
        "recall_at_10": found.at_10,
        "median_rank": found.median_rank,
        "video_to_text_recall_at_1": back.at_1,
        "video_to_text_recall_at_5": back.at_5,
        "video_to_text_recall_at_10": back.at_10,
        "video_to_text_median_rank": back.median_rank,
    }


def compare(score: SettingScore, evidence: Evidence) -> list[Lead]:
    """Return ReuseViT's lead over each baseline at equal FLOPs, the best one first; nothing for other methods.

    Of Acc@GQA, else of accuracy, else of the agreement of neighbours, as `quality_of` takes them.
    """
    if score.setting.method != ReuseVitConfig.method:
        return []
    others = [
        Scored(one.setting.method, one.gflops_per_frame, _items(one))
        for one in evidence.scores
        if one.setting.method not in (ReuseVitConfig.method, OriginalConfig.method)
    ]
    ours = Scored(score.setting.method, score.gflops_per_frame, _items(score), score.setting.label)
    return leads(ours, others, seed=evidence.seed)


def _items(score: SettingScore) -> dict[Item, float]:
    """Return what was scored by itself, named by its clip and its own name; nothing but cosines gives nothing."""
    if score.task:
        return {(row.clip_id, row.question_id): float(row.grounded) for row in score.rows}
    if score.rows:
        return {(row.clip_id, row.question_id): float(row.correct) for row in score.rows}
    shares = score.agreement.by_clip if score.agreement else {}
    return {(name, str(index)): share for name, some in shares.items() for index, share in enumerate(some)}


def _difference(score: SettingScore, evidence: Evidence) -> dict[str, Any]:
    """Return the interval of ReuseViT's lead over the best baseline, where it is one of Acc@GQA."""
    found = compare(score, evidence) if score.task else []
    if not found:
        return {}
    return {"acc_gqa_diff_ci_low": found[0].difference.low, "acc_gqa_diff_ci_high": found[0].difference.high}


def _reduction_published(score: SettingScore, original: SettingScore, shape: VitShape) -> float | None:
    ours = published_flops(score.setting.config, shape, score.reuse_rate)
    dense = published_flops(original.setting.config, shape, 0.0)
    return dense / ours if ours and dense else None


def published_flops(config: MethodConfig, shape: VitShape, reuse_rate: float) -> float | None:
    """Return a setting's FLOPs per frame by the artifact's formulas, or None where it has none for method or tower."""
    if not shape.has_pre_norm or not shape.has_cls:  # no CLIP
        return None
    try:
        match config:
            case OriginalConfig():
                return flops_published.original(shape)
            case CmcConfig():
                return flops_published.cmc(shape, reuse_rate)
            case EventfulConfig(refreshed_tokens=tokens):
                return flops_published.eventful(shape, tokens)
            case ReuseVitConfig():
                return flops_published.reusevit(shape, reuse_rate)
            case DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept):
                return flops_published.diffrate(shape, prune_kept, merge_kept)
    except ValueError:  # another tower than the artifact's two
        return None
    return None


def draw_frontier(
    points: Sequence[ParetoPoint], results: StorePath, *, title: str, published: bool, max_loss: float = MAX_LOSS
) -> None:
    """Write pareto.csv, the plot as pareto.png and .svg, and one of agreement where there are answers as well."""
    write_pareto_csv(results / "pareto.csv", points)
    png, svg = results / "pareto.png", results / "pareto.svg"
    plot_pareto(points, png, svg, published=published, title=title, max_loss=max_loss)
    png, svg = results / "agreement.png", results / "agreement.svg"
    if has_agreement_beside(points):
        plot_pareto(points, png, svg, quality="agreement", title=title, max_loss=max_loss)
    else:  # nor one that an earlier run left
        for path in (png, svg):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Journal:
    """Where a run is logged, and what it did before its settings were scored."""

    tracking: Tracking
    tags: Mapping[str, str]
    """Of the run of the pipeline."""
    tried: Sequence[Run] = ()
    """Children for what was tried on validation clips."""


def log_frontier(
    points: Sequence[ParetoPoint], journal: Journal, results: StorePath, max_loss: float = MAX_LOSS
) -> str:
    """Log one parent run with the plot and the summary, and one child for each point; return the parent's id.

    Points are on test clips, Original first. `max_loss` is the share of its quality that the summary's settings may
    lose.
    """
    quality, tracking = quality_of(points), journal.tracking
    summary: dict[str, float | None] = {}
    for gain in GAINS:
        for method, best in best_within(points, quality, gain, max_loss=max_loss).items():
            summary[f"best_{gain}_within_{100 * max_loss:g}pct/{method}"] = getattr(best, gain)
    artifacts = tuple(path for name in ARTIFACTS if is_file(path := results / name))
    config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
    parameters: dict[Any, Any] = pd.json_normalize(config, sep=".").to_dict("records")[0]
    tags = {
        **journal.tags,
        "mlflow.source.name": "jobs/pipeline.py",
        "mlflow.source.git.commit": journal.tags["git_commit"],
    }
    note = {"mlflow.note.content": describe(points, quality, tracking.view_path(VIEW_ID), max_loss)}
    parent = Run(name=tags["recipe"], params=parameters, metrics=summary, tags=tags | note, artifacts=artifacts)
    parent_id = tracking.log(parent, [*(_child(point, tags) for point in points), *journal.tried])
    tracking.save_view(VIEW_ID, saved_view(parent_id, quality, round(1e3 * time.time())))
    return parent_id


def describe(points: Sequence[ParetoPoint], quality: Quality, view_path: str, max_loss: float = MAX_LOSS) -> str:
    """Return the parent's description in Markdown: where to look, and each method's fastest and cheapest setting."""
    words = words_of(points, quality)
    called = words.name if words.name == quality else f"{words.name} (`{quality}`)"
    within = f"within {100 * max_loss:g} % of Original's {called}, {words.meaning}"
    lines = [
        f"Each setting is a child run; [{VIEW_NAME}]({view_path}) shows them all, `pareto.png` is under Artifacts.",
        "",
    ]
    good = headlines(points, quality, max_loss)
    rows = [(one.method, best) for one in good for best in dict.fromkeys([one.fastest, one.best]) if best]
    if not rows:
        return "\n".join([*lines, f"No setting of another method is {within}."])
    lines += [
        f"Fastest setting of each method by the clock, and the one of fewest FLOPs, {within}:",
        "",
        f"| method | setting | {words.name} | speed | FLOPs |",
        "|---|---|---|---|---|",
    ]
    for method, best in rows:
        speed = "" if best.speedup is None else f"{best.speedup:.2f}x"
        cost = f"{speed} | {best.flops_reduction:.2f}x fewer"
        lines.append(f"| {styles_of([method])[method].name} | {best.setting} | {getattr(best, quality):.3f} | {cost} |")
    return "\n".join(lines)


def _child(point: ParetoPoint, tags: Mapping[str, str]) -> Run:
    names = [field.name for field in fields(point) if field.name not in PARAMETER_FIELDS + TAG_FIELDS]
    names.sort(key=lambda name: FIRST_METRICS.index(name) if name in FIRST_METRICS else len(FIRST_METRICS))
    notes = {name: str(getattr(point, name)).lower() for name in TAG_FIELDS if getattr(point, name) is not None}
    colour = {"mlflow.runColor": styles_of([point.method])[point.method].colour}
    return Run(
        name=f"{point.method} {point.setting}",
        params={name: getattr(point, name) for name in PARAMETER_FIELDS},
        metrics={name: getattr(point, name) for name in names},
        tags={**tags, **notes, **colour},
    )


def git_commit(configured: str | None) -> str:
    """Return the commit that runs: as handed to the job, else asked of git, else `unknown`."""
    if configured:
        return configured
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PACKAGES_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return asked.stdout.strip()
