"""From what a rehearsal took to what the whole data set would take on such hardware, with the recipe's defaults.

Each kind of work is counted in units that cost alike, whatever the number of clips: what a unit took a worker in the
rehearsal, times the units of the whole, over the workers that can share it. What a stage took while no worker was at
work, such as starting processes, is added once and not scaled.

L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dejavu.experiment import Experiment
from dejavu.records import Split
from dejavu.rehearsal.spent import Spent, StepKey, Steps
from dejavu.report.frontier import ORIGINAL
from dejavu.stages.measure import (
    PASS_S,
    PASSES_APART,
    PASSES_PER_ROUND,
    ROUNDS_S,
    MeasureConfig,
    rounds_within,
    sample_within,
)
from dejavu.stages.residual_token import STAGE as TOKEN
from dejavu.stages.residual_token import frames_seen
from dejavu.stages.search_schedules import SchedulesConfig
from dejavu.stages.target_fit import PROBED_BIASES
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.diffrate.search import JUDGED_FRAMES
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape
from tune_spaces.grid_inputs import AddonCurve, GridInputs, Statistic, Trained
from tune_spaces.grids import GRIDS

Holder = Literal["cpu", "encoder"]
"""What a worker of this kind of work holds: a CPU, or a GPU where there are any."""

FORWARD_AND_BACKWARD = 3
"""Passes over a frame that a step with a gradient takes, as is usual to count."""
LEAST_S = 1e-6
"""For a frame, where steps were too short to be told from nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Counts of a data set."""

    videos: Mapping[Split, int]
    seconds: Mapping[Split, float]
    windows: int
    """Of training, in one visit to each training clip."""
    texts: int
    """Candidate answers of the questions of both scored splits."""

    def frames(self, split: Split, fps: float) -> float:
        """Return the frames of a split at this rate."""
        return self.seconds[split] * fps


NEXT_QA = DataSet(
    videos={"train": 3870, "val": 567, "test": 990},
    seconds={"train": 157_100, "val": 24_000, "test": 39_200},
    windows=19_800,
    texts=5 * (3358 + 5553),
)
"""Validation and test as annotated in NExT-GQA (docs/nextqa.md). Of training videos the number is published, and they
are taken to be as long as the others: 40.6 s on average, 5.1 windows each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What one machine has."""

    cpus: int
    gpus: int = 0

    def slots(self, holder: Holder, machines: int) -> int:
        """Return how many workers so many machines have room for."""
        return machines * (self.gpus if holder == "encoder" and self.gpus else self.cpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """What a rehearsal had before it, and what the whole run has."""

    shape: VitShape
    """Of the tower of both."""
    rehearsed: Experiment
    recipe: Experiment
    data: DataSet = NEXT_QA
    """Of the whole run."""
    hardware: Hardware
    """Of one machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One kind of work: what was rehearsed of it, and what the whole has."""

    stage: str
    what: str
    unit: str
    done: float
    """Units in the rehearsal."""
    busy_s: float
    """Of workers, for them."""
    whole: float
    """Units in all."""
    holder: Holder = "encoder"
    at_once: float = math.inf
    """Workers that can share it, at most."""

    @property
    def worker_s(self) -> float:
        """Seconds that one worker would take for the whole."""
        return self.busy_s / self.done * self.whole

    def wall_s(self, hardware: Hardware, machines: int) -> float:
        """Return the seconds that it takes on so many machines."""
        return self.worker_s / min(self.at_once, hardware.slots(self.holder, machines))


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWhole:
    """One stage of the whole run."""

    worker_h: float
    """Of all its workers together."""
    hours: Mapping[int, float]
    """By number of machines."""
    written: float
    """Bytes: those of clips and embeddings grow with the frames, others are as in the rehearsal."""


def forecast(lines: Sequence[Line], spent: Spent, hardware: Hardware, machines: Sequence[int]) -> dict[str, StageWhole]:
    """Return what each stage of the whole run takes; of a stage without lines, as OTHER, nothing is scaled."""
    found = {}
    for stage, one in spent.stages.items():
        own = [line for line in lines if line.stage == stage]
        fixed_s = one.fixed_s if not own or any(key.stage == stage for key in spent.steps) else one.seconds - one.last_s
        found[stage] = StageWhole(
            worker_h=sum(line.worker_s for line in own) / 3600,
            hours={count: (fixed_s + sum(line.wall_s(hardware, count) for line in own)) / 3600 for count in machines},
            written=one.written * _growth(own),
        )
    return found


def _growth(lines: Sequence[Line]) -> float:
    """Return how much more a stage writes for all frames under all settings."""
    writing = [line for line in lines if line.what.split(" ")[0] in ("transcode", "encode")]
    return sum(line.whole for line in writing) / sum(line.done for line in writing) if writing else 1.0


def list_lines(spent: Spent, extent: Extent) -> list[Line]:
    """Return every kind of work that the rehearsal did, with the units of the whole."""
    lines = (*_embed_lines(spent, extent), *_train_lines(spent, extent), *_driver_lines(spent, extent))
    return [line for line in lines if line.done > 0]


def grid_sizes(shape: VitShape, recipe: Experiment) -> dict[str, int]:
    """Return how many settings of each method the recipe's sweep tries on a tower, its trainings done."""
    biases = tuple(range(1, 1 + len(recipe.train.calibrated_rates)))
    addons = [AddonCurve(ReuseVitConfig(name=f"target={target:g}"), biases) for target in recipe.train.targets]
    schedules = [
        DiffRateConfig(prune_kept=(2,), merge_kept=(2,), label=f"{share:g}") for share in recipe.schedules.shares
    ]
    tower = GridInputs(
        shape,
        _apart,
        Trained(
            tuple(addons) if recipe.fits("reusevit") else (),
            tuple(schedules) if recipe.fits("diffrate") else (),
            ResidualVitConfig() if recipe.fits("residualvit") else None,
        ),
    )
    sizes = {}
    for method in recipe.sweep.methods:
        try:
            sizes[method] = len(GRIDS[method](tower, recipe.sweep.density))
        except ValueError:  # a method that refuses this tower is left out of the run, too
            continue
    return sizes


def _apart(_: Statistic, shares: Sequence[float]) -> list[float]:
    """Stand in for what is read off validation clips: how many settings there are is all that counts."""
    return [1.0 + place for place in range(len(shares))]


def _embed_lines(spent: Spent, extent: Extent) -> Iterator[Line]:
    recipe, data = extent.recipe, extent.data
    fps, sizes = recipe.transcode.fps, grid_sizes(extent.shape, recipe)
    trials = sum(sizes.values())
    everything, val, test = fps * sum(data.seconds.values()), data.frames("val", fps), data.frames("test", fps)
    yield _line(spent, StepKey("transcode", "transcode"), everything, "cpu")
    yield _line(spent, StepKey("embed", "decode"), everything, "cpu")
    for key in spent.steps:
        settings = sizes.get(key.method, 0)
        if (key.stage, key.step) == ("embed", "encode"):
            whole = everything if key.method == ORIGINAL else test * min(recipe.sweep.chosen_per_method, settings)
            yield _line(spent, key, whole)
        elif key.stage == "sweep" and key.step in ("encode", "decode"):
            # Each trial decodes for itself, and is told of under its method.
            yield _line(spent, key, val * settings, at_once=trials)


def _train_lines(spent: Spent, extent: Extent) -> Iterator[Line]:
    recipe, data, hardware = extent.recipe, extent.data, extent.hardware
    train, fps = recipe.train, recipe.transcode.fps
    targets, warm_up = len(train.targets), train.warm_up
    clips_per_step, steps = train.course(data.windows)
    epochs = train.visits(data.windows)
    window = len(PUBLISHED_PATTERN)
    fitted = steps * clips_per_step * window
    calibrated = min(data.frames("val", fps) / data.videos["val"], recipe.embed.segment_frames)
    calibrated *= len(PROBED_BIASES) * train.calibration_clips * targets
    workers = train.num_workers or (math.inf if hardware.gpus else min(2, hardware.cpus))
    yield _line(spent, StepKey("train", "decode"), fitted, at_once=workers)
    yield _line(spent, StepKey("train", "fit"), fitted * targets, at_once=workers)
    validated = epochs * targets * train.validation_windows * window
    yield _line(spent, StepKey("train", "validate"), validated, at_once=min(workers, train.validation_windows))
    at_once = min(workers, max(1, train.calibration_clips))
    yield _line(spent, StepKey("train", "calibrate"), calibrated, at_once=at_once)
    # What follows is done by each worker, or by one task: more of them do not shorten it.
    yield _line(spent, StepKey("train", "gather"), warm_up.num_clips * window, at_once=1)
    yield _line(spent, StepKey("train", TOKEN), frames_seen(recipe.residual), at_once=1)
    regressed = spent.steps.get(StepKey("train", "warm_up"), Steps())
    yield Line(
        stage="train",
        what="warm_up",
        unit="steps",
        done=regressed.count * extent.rehearsed.train.warm_up.steps,
        busy_s=regressed.seconds,
        whole=targets * warm_up.steps,
        at_once=1,
    )


def _driver_lines(spent: Spent, extent: Extent) -> Iterator[Line]:
    shape, rehearsed, recipe = extent.shape, extent.rehearsed, extent.recipe
    searched = [steps for key, steps in spent.steps.items() if key.step == "search"]
    shares = len(recipe.schedules.shares)
    yield Line(
        stage="schedules",
        what="search",
        unit="frame passes",
        done=sum(steps.count for steps in searched) * search_passes(rehearsed.schedules, shape),
        busy_s=sum(steps.seconds for steps in searched),
        whole=shares * search_passes(recipe.schedules, shape),
        at_once=shares,
    )
    chosen = {ORIGINAL: 1} | {
        method: min(recipe.sweep.chosen_per_method, size) for method, size in grid_sizes(shape, recipe).items()
    }
    for key in spent.steps:
        if key.step == "time":
            passes = measure_passes(
                recipe.measure, recipe.embed.streams, spent.steps[key].seconds / max(1, spent.steps[key].frames)
            )
            yield _line(spent, key, chosen.get(key.method, 0) * passes, at_once=1)
    if texts := spent.stages.get("texts"):
        whole = extent.data.texts
        yield Line(
            stage="texts", what="embed", unit="texts", done=texts.units, busy_s=texts.last_s, whole=whole, at_once=1
        )


def measure_passes(config: MeasureConfig, streams: int, frame_s: float) -> int:
    """Return how many frames are encoded to time one setting, each of which takes so many seconds."""
    frame_s = max(frame_s, LEAST_S)
    clips, num_frames = sample_within(PASS_S, frame_s, config.num_clips or streams, config.num_frames)
    rounds = rounds_within(ROUNDS_S, PASSES_PER_ROUND * clips * num_frames * frame_s, config.num_rounds)
    return clips * num_frames * (PASSES_APART + PASSES_PER_ROUND * rounds)


def search_passes(config: SchedulesConfig, shape: VitShape) -> float:
    """Return how many passes over a frame one schedule's search takes, as `diffrate_search` does it.

    Dense embeddings of all frames; each possible start and each rounded schedule judged at about its share of the cost;
    and gradient steps.
    """
    search = config.search
    share = sum(config.shares) / len(config.shares)
    starts = 2 * (shape.num_layers - 1) + 1
    judged = min(JUDGED_FRAMES, config.num_frames // 2)
    times = 1 + len({*range(0, search.steps, search.judged_every), search.steps})
    first = starts * min(search.frames_per_step, judged)
    return (
        config.num_frames
        + share * (first + times * judged)
        + FORWARD_AND_BACKWARD * search.steps * search.frames_per_step
    )


def _line(spent: Spent, key: StepKey, whole: float, holder: Holder = "encoder", at_once: float = math.inf) -> Line:
    steps = spent.steps.get(key, Steps())
    return Line(
        stage=key.stage,
        what=f"{key.step} {key.method}".strip(),
        unit="frames",
        done=steps.frames,
        busy_s=steps.seconds,
        whole=whole,
        holder=holder,
        at_once=at_once,
    )
