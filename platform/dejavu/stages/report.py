"""Gather what a person looks at after a run: break-downs, drift, where tokens were reused; write the page with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import read_beside
from dejavu.records import ParetoPoint, Transcoded
from dejavu.report.breakdown import Answered, BreakdownRow, break_down, by_question_type, by_terciles
from dejavu.report.drift import AgePoint, drift_curve, plot_drift
from dejavu.report.equal_flops import write_leads_csv
from dejavu.report.frontier import has_agreement_beside, original_quality, quality_of
from dejavu.report.motion import measure_motion
from dejavu.report.page import Picture, RunFacts, Tables, write_report
from dejavu.report.reuse_layers import LayerRates, layer_rates, plot_layer_rates
from dejavu.report.reuse_map import plot_reuse_map
from dejavu.report.style import styles_of
from dejavu.stages.embed import observe_reuse
from dejavu.stages.frontier import Evidence, compare
from dejavu.stages.score import EvalSet
from dejavu.storage.setting import Setting
from dejavu.storage.store import local_copy, write_records
from dejavu.storage.store_path import StorePath
from dejavu.tasks.fidelity import frame_cosines
from dejavu.video.decode import decode_all
from reuse_models.reusevit.method import ReuseVitConfig

PARETO_CAPTION = (
    "Each line is a method, each mark a setting. Right is faster or cheaper, up is better. Whiskers are the paired "
    "95 % interval of the difference to Original, at Original's quality: where they cross its line, the two cannot be "
    "told apart."
)
AGREEMENT_CAPTION = (
    "The same settings by what stays of Original's embeddings. With few clips this tells more than answers do, of "
    "which each clip has one or a few."
)
DRIFT_CAPTION = (
    "Mean cosine of a frame's embedding to the dense tower's, by the number of frames since the method last computed a "
    "frame in full; shaded, its 95 % interval over resampled clips. Ages that fewer than a third of the clips reach "
    "are left out. The numbers are in drift.csv."
)
LAYERS_CAPTION = (
    "Share of patches reused at each boundary between two layers, in per cent, over the first frames of {clips}: "
    "clips of low, middle and high motion. Original and the methods that merge tokens within a frame reuse nothing."
)
MAP_CAPTION = (
    "{method} ({setting}) on {clip}, a clip of middle motion: some of its first {frames} frames, the codec's "
    "macroblock classes, and the share of boundaries at which each patch was reused."
)


@dataclass(frozen=True, slots=True)
class Scored:
    """What a run has in hand once its settings are scored."""

    points: Sequence[ParetoPoint]
    """In the order of the evidence's scores."""
    evidence: Evidence
    eval_set: EvalSet
    embedding: EmbedContext


def write_page(scored: Scored, facts: RunFacts, results: StorePath) -> StorePath:
    """Write breakdown.csv, drift.csv, equal_flops.csv and report.html beside pareto.csv; return the page's path."""
    settings = [score.setting for score in scored.evidence.scores]
    frames = _frames(settings, scored)
    shared = sorted(set.intersection(*(set(by_clip) for by_clip in frames.values())))
    clips = [clip for clip in scored.eval_set.clips if clip.clip_id in set(shared)]
    asked = [question for question in scored.eval_set.questions if question.clip_id in set(shared)]
    groups = by_question_type(asked, "class" if scored.eval_set.readers else "question_type")
    motion_of = measure_motion(clips, scored.embedding.store)
    groups += by_terciles("motion_px", motion_of)
    groups += by_terciles("duration_s", {clip.clip_id: clip.duration_s for clip in clips})
    answered = [
        Answered(
            score.setting.method,
            score.setting.label,
            score.rows,
            {clip_id: float(frames[score.setting][clip_id][0].mean()) for clip_id in shared},
            has_spans=score.task is not None,
            agreement=score.agreement,
        )
        for score in scored.evidence.scores
    ]
    rows = break_down(answered, answered[0], groups, seed=scored.evidence.seed)
    write_records(results / "breakdown.csv", BreakdownRow, rows)
    plots = [Picture(results / "pareto.svg", "", PARETO_CAPTION)]
    if has_agreement_beside(scored.points):
        plots.append(Picture(results / "agreement.svg", "Agreement of neighbours", AGREEMENT_CAPTION))
    pictures = {
        "pareto": plots,
        "drift": _draw_drift(scored, frames, results),
        "reuse": _draw_reuse(scored, typical(clips, motion_of), facts.allowed_loss),
    }
    page = results / "report.html"
    found = [lead for score in scored.evidence.scores for lead in compare(score, scored.evidence)]
    write_leads_csv(results / "equal_flops.csv", found)
    write_report(page, scored.points, Tables(rows, found), pictures, facts)
    return page


Frames = tuple[NDArray[np.floating], NDArray[np.floating]]
"""[F] and [F] of one clip: each frame's cosine to Original's, and its reuse rate."""


def _frames(settings: Sequence[Setting], scored: Scored) -> dict[Setting, dict[str, Frames]]:
    """Return what is needed of each frame, setting by setting and clip by clip, of the clips that Original has too."""
    found: dict[Setting, dict[str, Frames]] = {setting: {} for setting in settings}
    for setting, ours, dense in read_beside(scored.embedding, settings, settings[0], scored.eval_set.clips):
        for clip_id in ours.keys() & dense.keys():
            cosine_F = frame_cosines(ours[clip_id].embeddings_FE, dense[clip_id].embeddings_FE)
            found[setting][clip_id] = cosine_F, ours[clip_id].reuse_rate_F
    return {setting: dict(sorted(by_clip.items())) for setting, by_clip in found.items()}


def _draw_drift(scored: Scored, frames: Mapping[Setting, Mapping[str, Frames]], results: StorePath) -> list[Picture]:
    """Draw the curves of settings that reuse anything; merging methods and Original compute each frame by itself."""
    curves = [
        drift_curve((score.setting.method, score.setting.label), frames[score.setting], seed=scored.evidence.seed)
        for point, score in zip(scored.points, scored.evidence.scores, strict=True)
        if point.reuse_rate
    ]
    write_records(results / "drift.csv", AgePoint, chain.from_iterable(curves))
    if not any(curves):
        return []
    picture = scored.embedding.store.root / "pictures" / "drift.png"
    plot_drift(curves, picture)
    return [Picture(picture, "", DRIFT_CAPTION)]


def typical(clips: Sequence[Transcoded], motion_of: Mapping[str, float], num_clips: int = 3) -> list[Transcoded]:
    """Choose clips in the middle of each part when all are cut by motion into `num_clips` parts; fewer of fewer.

    Clips whose motion is not known come first, in the order of their contents.
    """
    order = sorted(clips, key=lambda clip: (motion_of.get(clip.clip_id, -1.0), clip.content_id))
    places = {len(order) * (2 * part + 1) // (2 * num_clips) for part in range(num_clips)}
    return [order[place] for place in sorted(places)]


def _draw_reuse(scored: Scored, clips: Sequence[Transcoded], max_loss: float) -> list[Picture]:
    """Draw how much each setting reuses layer by layer, and where ReuseViT reuses in one clip."""
    pairs = [
        (point, score.setting)
        for point, score in zip(scored.points, scored.evidence.scores, strict=True)
        if point.reuse_rate
    ]
    if not pairs:
        return []
    observed = observe_reuse([setting for _, setting in pairs], clips, scored.embedding)
    folder, prefix = scored.embedding.store.root / "pictures", scored.evidence.shape.num_prefix
    rates = [
        LayerRates(setting.method, setting.label, layer_rates(np.concatenate(observed[setting]), prefix))
        for _, setting in pairs
    ]
    plot_layer_rates(rates, folder / "layers.png")
    names = ", ".join(clip.clip_id for clip in clips)
    pictures = [Picture(folder / "layers.png", "Layer by layer", LAYERS_CAPTION.format(clips=names))]
    ours = [(point, setting) for point, setting in pairs if setting.method == ReuseVitConfig.method]
    if ours:
        quality = quality_of(scored.points)
        least = (1 - max_loss) * original_quality(scored.points, quality)
        # The cheapest of the headline, else the one that loses least.
        good = [pair for pair in ours if getattr(pair[0], quality) >= least]
        point, setting = max(
            good or ours, key=lambda pair: float(getattr(pair[0], "flops_reduction" if good else quality) or 0)
        )
        middle = len(clips) // 2
        reuse_FLN = observed[setting][middle]
        with local_copy(scored.embedding.store.root / clips[middle].path) as path:
            frames = decode_all(path, count=len(reuse_FLN))
        plot_reuse_map(frames.rgb_FHWC, reuse_FLN, folder / "map.png", class_FPP=frames.codec_F4PP[:, 0])
        caption = MAP_CAPTION.format(
            method=styles_of([point.method])[point.method].name,
            setting=point.setting,
            clip=clips[middle].clip_id,
            frames=len(reuse_FLN),
        )
        pictures.append(Picture(folder / "map.png", "In the picture", caption))
    return pictures
