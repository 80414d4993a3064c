"""One trial of a sweep: a setting embeds the clips that it lacks and is scored; in a search, part by part of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ray import tune

from dejavu.embedding.batch import EmbedContext, decode_batch, plan
from dejavu.embedding.reader import step_on
from dejavu.observability.metrics import failed, metered
from dejavu.records import Failure, Transcoded
from dejavu.stages.embed import EncodeRow
from dejavu.stages.score import EvalSet, SettingScore, score_settings
from dejavu.storage.setting import Setting

STAGE = "sweep"
WORTHLESS = 0.5
"""Nobody runs a setting below this share of the best quality."""


Reached = Sequence[tuple[str, float, float]]
"""On some clips by a grid: of each of its settings the method, GFLOPs per frame and quality."""


def reached_by(scores: Sequence[SettingScore]) -> Reached:
    """Return what settings have reached, which is little beside their scores."""
    return [(score.setting.method, score.gflops_per_frame, quality(score)) for score in scores]


def shortfall(score: SettingScore, grid: Reached) -> float:
    """Say how far a setting lies below what its method's grid reaches at that cost or less, on the same clips.

    0 for one that adds to the frontier of its method, however cheap or dear. Below the cheapest setting of the grid,
    what is expected is WORTHLESS.

    Returns:
        In shares of the best quality of all methods, 0 or more.
    """
    best = max(value for _, _, value in grid)
    rivals = [(cost, value) for method, cost, value in grid if method == score.setting.method]
    expected = max([WORTHLESS * best, *(value for cost, value in rivals if cost <= score.gflops_per_frame)])
    return max(0.0, expected - quality(score)) / best if best > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """Clips after which a trial reports."""

    eval_set: EvalSet
    share: float
    """Of all clips; 1 for the last part, which is all of them."""
    grid: Reached | None = None
    """In a search."""


def cut_eval_set(eval_set: EvalSet, shares: Sequence[float]) -> list[tuple[float, EvalSet]]:
    """Cut an evaluation set into growing parts by content id, each within the next; the last one is all of it."""
    clips = sorted(eval_set.clips, key=lambda clip: (clip.content_id, clip.clip_id))
    counts = {math.ceil(share * len(clips)): share for share in (*sorted(shares), 1.0)}
    return [(share, _first(eval_set, clips[:count])) for count, share in counts.items()]


def _first(eval_set: EvalSet, clips: Sequence[Transcoded]) -> EvalSet:
    names = {clip.clip_id for clip in clips}
    questions = tuple(question for question in eval_set.questions if question.clip_id in names)
    return replace(eval_set, clips=tuple(clips), questions=questions)


def run_trial(config: dict[str, Any], parts: Sequence[Part], embedding: EmbedContext, original: dict[str, Any]) -> None:
    """One setting: embed what it lacks of each part, score, report. Tune may end it at a report."""
    setting = Setting.from_row(config["setting"])
    encoder = _encoder(embedding)
    start = time.monotonic()
    failures: list[Failure] = []
    for index, part in enumerate(parts):
        for batch in plan(part.eval_set.clips, [setting], embedding):
            with metered(step_on("decode", batch.segments, setting, STAGE)) as done:
                decoded = decode_batch(batch.segments, embedding)
                done.num_frames = sum(segment.num_frames for segment in decoded.segments)
            failed(set(decoded.failures).difference(failures))
            failures += decoded.failures
            encoder.encode(setting, decoded, STAGE)
        embedding.store.write_failures(STAGE, dict.fromkeys(failures), part=setting.setting_id)
        score = score_settings([setting], Setting.from_row(original), part.eval_set, embedding)[0]
        metrics = validation_metrics(score) | {"clips_share": part.share, "rung": 2.0**index}
        if part.grid is not None:
            metrics["shortfall"] = shortfall(score, part.grid)
        tune.report({**metrics, "embed_s": time.monotonic() - start})


@lru_cache(maxsize=1)
def _encoder(embedding: EmbedContext) -> EncodeRow:
    """Trials that share a process share its backbone."""
    return EncodeRow(embedding)


def quality(score: SettingScore) -> float:
    """What settings are chosen by: Acc@GQA, or the share of right answers, else what stays of Original.

    That is the agreement of neighbours, and where clips are too few for it the mean cosine. It chooses where clips have
    classes as well: an answer a clip, of a few dozen clips, hardly tells settings apart.
    """
    if score.task:
        return score.task.acc_gqa
    if score.accuracy is not None and not score.by_reader:
        return score.accuracy
    return score.agreement.mean if score.agreement else score.cosine_to_dense


def validation_metrics(score: SettingScore) -> dict[str, float]:
    """Return what Tune, TensorBoard and MLflow show of a setting on validation clips."""
    metrics = {
        "quality": quality(score),
        "gflops_per_frame": score.gflops_per_frame,
        "reuse_rate": score.reuse_rate,
        "cosine_to_dense": score.cosine_to_dense,
    }
    if score.agreement:
        metrics["agreement"] = score.agreement.mean
    if score.accuracy is not None:
        metrics["accuracy"] = score.accuracy
    if score.task:
        metrics |= {"acc_gqa": score.task.acc_gqa, "miop": score.task.miop}
    return metrics
