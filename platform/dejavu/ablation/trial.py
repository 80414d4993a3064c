"""One variant under one seed: fitted by the plain loop, then used on validation clips at several biases.

Shapes: F frames, E embedding width.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dejavu.ablation.footage import CHUNK_FRAMES, Footage, World, windows
from dejavu.ablation.variants import DEFAULT_FIT, Variant
from dejavu.backbones.load import Backbone
from dejavu.embedding.encode import EncodedSegment, encode_batch
from dejavu.embedding.windows import to_batch
from dejavu.records import Prediction
from dejavu.stages.score import EvalSet
from dejavu.storage.store import identity
from dejavu.tasks.fidelity import frame_cosines
from dejavu.tasks.grounded_qa import score
from dejavu.tasks.neighbours import NeighbourSearch, agreement, choose_queries
from dejavu.tasks.zero_shot import zero_shot
from dejavu.video.codec_grid import MotionBinning
from reuse_models.flops import dense_flops
from reuse_models.reusevit.addon import Addon, save_addon
from reuse_models.reusevit.frame_order import PATTERN_SPAN, PUBLISHED_PATTERN
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Fit
from reuse_models.training.held_out import begin
from reuse_models.training.warm_up import gather_pairs, warm_up

TRIAL_VERSION = 1
"""Goes up when the same variant would give something else: results are kept by it, not by a hash of the code, which
others change while a table is being completed."""

REDUCTIONS = (2.5, 3.0)
"""Executed-FLOP reductions at which variants are compared."""
FIRST_BIASES = (-4.0, 0.0, 3.0)
WIDEST_BIAS = 16.0
CLOSE = 0.02
"""A point this near in reduction needs no nearer one: the rest is interpolated."""
MOST_PROBES = 4
"""Of one reduction, beyond the first."""
NUM_EPOCHS = 6
"""Times that learning rates fall."""
STREAMS = 8
HELD_OUT = 8
"""Windows that say how a fit of one's own videos begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One setting of the knob on all validation clips."""

    bias: float
    reduction: float
    """Original's executed FLOPs over these; dense frames, codec net and decisions included."""
    reuse_rate: float
    cosine: float
    """Mean over frames of the cosine to dense."""
    acc_gqa: float | None = None
    """None where nothing is asked, as of a folder of videos."""
    acc_qa: float | None = None
    agreement: float | None = None
    """Of neighbours, see tasks/neighbours.py; None where something is asked, which says more."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is measured: a variant, a seed, and how long the fit is."""

    variant: Variant
    seed: int
    num_steps: int
    """Of the default's number of clips."""

    def fit_id(self, data_id: str) -> str:
        """Name the fit's weights."""
        return self._id(self.variant.fit_parts(), data_id)

    def result_id(self, data_id: str) -> str:
        """Name the result."""
        return self._id({**self.variant.parts(), "reductions": REDUCTIONS}, data_id)

    def _id(self, parts: dict[str, Any], data_id: str) -> str:
        return identity(
            {**parts, "seed": self.seed, "steps": self.num_steps, "data": data_id, "version": TRIAL_VERSION}
        )


def fit_addon(trial: Trial, world: World, backbone: Backbone, path: Path) -> float:
    """Fit the variant's add-on into `path` and return the seconds that it took."""
    began = time.monotonic()
    variant = trial.variant
    config = replace(variant.fit, seed=trial.seed)
    stream = windows(world.train, PUBLISHED_PATTERN, variant.motion, trial.seed)
    fit = Fit(backbone.vit, variant.loss, config)
    start = variant.start
    size = config.clips_per_step
    some = (to_batch(list(islice(stream, size)), backbone).pixels_CF3HW for _ in range(-(-start.num_clips // size)))
    warm_up({variant.loss.target_rate: fit.addon}, gather_pairs(backbone.vit, some, PUBLISHED_PATTERN, start), start)
    if config.rate == "held":
        held = [clip.window(0, PUBLISHED_PATTERN, variant.motion) for clip in _longest(world.validation)]
        fit, _ = begin(fit, (lambda: (to_batch([window], backbone) for window in held)) if held else None)
    # All variants see as many windows: one with smaller steps takes more of them.
    num_steps = trial.num_steps * DEFAULT_FIT.clips_per_step // size
    for step in range(1, num_steps + 1):
        fit.step(to_batch(list(islice(stream, size)), backbone))
        if step % max(1, num_steps // NUM_EPOCHS) == 0:
            fit.end_epoch()
    _keep(fit.addon, path)
    return time.monotonic() - began


def _longest(clips: Sequence[Footage]) -> list[Footage]:
    """Return the clips that a fit asks how to begin: a few that hold a window, the longest."""
    longest = sorted(clips, key=lambda clip: (-clip.clip.num_frames, clip.clip.content_id))[:HELD_OUT]
    return [clip for clip in longest if clip.clip.num_frames >= PATTERN_SPAN]


def _keep(addon: Addon, path: Path) -> None:
    """Write the weights where they are looked for; they appear whole, and after the JSON beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        save_addon(addon, written)
        written.with_suffix(".json").replace(path.with_suffix(".json"))
        written.replace(path)


def measure(trial: Trial, world: World, backbone: Backbone, eval_set: EvalSet | None, weights: Path) -> list[Point]:
    """Use the add-on at biases around each wanted reduction; an `eval_set` is what is asked, if anything is."""
    config = replace(trial.variant.method, weights=str(weights))

    def at(bias: float) -> Point:
        return _point(replace(config, decision_bias=bias), world, backbone, eval_set, trial.variant.motion)

    return search(at, REDUCTIONS)


def search(at: Callable[[float], Point], reductions: Sequence[float]) -> list[Point]:
    """Probe the knob until each reduction has a point close to it or cannot be reached; return all points by bias.

    `at` measures one bias; reductions grow with it but for small dips.
    """
    points = [at(bias) for bias in FIRST_BIASES]
    for wanted in reductions:
        for _ in range(MOST_PROBES):
            points.sort(key=lambda point: point.bias)
            if min(abs(point.reduction - wanted) for point in points) <= CLOSE:
                break
            bias = _next_bias(points, wanted)
            if bias is None:
                break
            points.append(at(bias))
    return sorted(points, key=lambda point: point.bias)


def _next_bias(points: Sequence[Point], wanted: float) -> float | None:
    """Return where the line between the neighbours of a reduction meets it; outside, twice as far; None at the end."""
    if all(point.reduction < wanted for point in points):
        outer = 2 * points[-1].bias
        return outer if outer <= WIDEST_BIAS else None
    if all(point.reduction > wanted for point in points):
        outer = 2 * points[0].bias
        return outer if outer >= -WIDEST_BIAS else None
    for low, high in pairwise(points):
        if low.reduction <= wanted <= high.reduction:
            share = (wanted - low.reduction) / (high.reduction - low.reduction)
            # Not at an end again: a flat curve would be probed where it is known.
            return low.bias + min(0.9, max(0.1, share)) * (high.bias - low.bias)
    return None


def _point(
    config: ReuseVitConfig, world: World, backbone: Backbone, eval_set: EvalSet | None, motion: MotionBinning
) -> Point:
    clips = world.validation
    method = config.build(backbone.vit)
    encoded: list[EncodedSegment] = []
    for start in range(0, len(clips), STREAMS):
        frames = [clip.frames(motion) for clip in clips[start : start + STREAMS]]
        encoded += encode_batch(method, backbone, frames, CHUNK_FRAMES)
    cosine_F = np.concatenate(
        [frame_cosines(one.embeddings_FE, clip.dense_FE) for one, clip in zip(encoded, clips, strict=True)]
    )
    asked = _agreement(encoded, clips) if eval_set is None else _answered(encoded, clips, eval_set)
    flops_F = np.concatenate([one.flops_F for one in encoded])
    return Point(
        bias=config.decision_bias,
        reduction=dense_flops(backbone.vit.shape) / float(flops_F.mean()),
        reuse_rate=float(np.concatenate([one.reuse_rate_F for one in encoded]).mean()),
        cosine=float(cosine_F.mean()),
        **asked,
    )


def _answered(encoded: Sequence[EncodedSegment], clips: Sequence[Footage], eval_set: EvalSet) -> dict[str, float]:
    by_clip = {clip.clip.clip_id: (one.embeddings_FE, clip.seconds_F) for one, clip in zip(encoded, clips, strict=True)}
    predictions = []
    for question in eval_set.questions:
        answer, span_s = zero_shot(*by_clip[question.clip_id], eval_set.answers_AE[question.question_id])
        predictions.append(Prediction(question_id=question.question_id, answer=answer, span_s=span_s))
    task = score(eval_set.questions, predictions)
    return {"acc_gqa": task.acc_gqa, "acc_qa": task.acc_qa}


def _agreement(encoded: Sequence[EncodedSegment], clips: Sequence[Footage]) -> dict[str, float | None]:
    queries = choose_queries({clip.clip.content_id: clip.clip.num_frames for clip in clips})
    if queries is None:
        return {"agreement": None}
    ours, dense = NeighbourSearch(queries), NeighbourSearch(queries)
    for search_of, frames in (
        (ours, {clip.clip.content_id: one.embeddings_FE for clip, one in zip(clips, encoded, strict=True)}),
        (dense, {clip.clip.content_id: clip.dense_FE for clip in clips}),
    ):
        search_of.ask(frames)
        search_of.see(frames)
    return {"agreement": agreement(ours, dense).mean}


def to_row(trial: Trial, points: Sequence[Point], fit_seconds: float) -> dict[str, Any]:
    """Return plain values for the results folder."""
    return {
        "variant": trial.variant.name,
        "seed": trial.seed,
        "steps": trial.num_steps,
        "fit_seconds": round(fit_seconds, 1),
        "points": [asdict(point) for point in points],
    }
