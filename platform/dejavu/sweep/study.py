"""What a sweep tries of each method, and which of it is worth measuring on test clips."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from dejavu.backbones.load import Backbone
from dejavu.embedding.batch import EmbedContext, cut, decode_batch
from dejavu.records import Transcoded
from dejavu.report.frontier import hypervolume
from dejavu.stages.score import SettingScore
from dejavu.storage.setting import Setting, kernel_version, with_local_weights
from dejavu.storage.store import Store, identity, write_json
from dejavu.storage.store_path import is_file
from dejavu.sweep.trial import WORTHLESS, quality
from reuse_models.method import MethodConfig
from reuse_models.registry import config_from_dict, config_to_dict
from tune_spaces.grid_inputs import Density, GridInputs, Ranges, Statistic, Trained
from tune_spaces.grids import GRIDS, RANGES

Search = Literal["grid", "optuna"]

STATISTICS = "statistics.json"
"""In the store: what validation clips were found to be like, which takes dense passes of the tower."""

OTHER_COST = 1.15
"""Settings whose costs differ by less tell the same; what is 15 % on validation clips is still 10 on others."""

SAME_QUALITY = 0.99
"""What keeps this share of a setting's quality is as good on validation clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Which settings are tried, and how many of each method go on to the test clips."""

    methods: tuple[str, ...] = tuple(GRIDS)
    """Methods to try, by their names in tune_spaces/grids.py."""
    density: Density = "demo"
    """Number of settings in each method's grid: as in the paper (`paper`), a handful (`demo`) or two (`tiny`)."""
    chosen_per_method: int = 4
    """Maximum number of settings per method for test clips: those that add most to its validation frontier."""
    num_frames: int | None = None
    """Number of frames of validation clips on which settings are tried: whole clips in order of content id until there
    are this many. None means all clips."""
    probe_clips: int = 8
    """Number of validation clips from which CMC's distances and AdaptiveSkip's thresholds are taken."""
    diffrate_schedules: tuple[Path, ...] = ()
    """Schedules from jobs/search_schedules.py for this backbone, tried in addition to those of the train stage."""
    search: Search = "grid"
    """Which settings are tried: the `grid`, or with `optuna` also new ones within each method's range (tune_spaces)."""
    num_samples: int = 8
    """Maximum number of new settings of each method that an `optuna` search tries."""
    stop_after: tuple[float, ...] = (0.25, 0.5)
    """Shares of the validation clips after which poor new settings are stopped; if empty, each sees all clips."""
    seed: int = 0
    """Random seed of the search."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.methods) - set(GRIDS)):
            raise ValueError(f"sweep.methods: got {unknown}, expected some of {', '.join(GRIDS)}; check the names")
        for name in ("chosen_per_method", "num_frames", "probe_clips", "num_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sweep.{name}: got {value}, expected 1 or more; raise it")
        if wrong := [share for share in self.stop_after if not 0 < share < 1]:
            raise ValueError(
                f"sweep.stop_after: got {wrong[0]:g}, expected shares between 0 and 1; divide percentages by 100"
            )


def some_of(clips: Sequence[Transcoded], num_frames: int | None) -> list[Transcoded]:
    """Return the first clips by content that have so many frames together; all of them for None."""
    if num_frames is None:
        return list(clips)
    by_content = sorted(clips, key=lambda clip: clip.content_id)
    before = accumulate((clip.num_frames for clip in by_content), initial=0)
    return [clip for clip, frames in zip(by_content, before, strict=False) if frames < num_frames]


def look_at_tower(
    backbone: Backbone, clips: Sequence[Transcoded], embedding: EmbedContext, config: SweepConfig, trained: Trained
) -> GridInputs:
    """Return what grids and ranges depend on.

    Of the validation clips the first few of two frames or more show how far tokens and pixels move.
    """
    moving = [clip for clip in clips if clip.num_frames > 1]  # one frame shows no distance
    probes = sorted(moving, key=lambda clip: clip.content_id)[: config.probe_clips]
    segments = [segment for segment in cut(probes, embedding.config.chunk_frames * 4) if segment.start == 0]
    note = embedding.store.root / STATISTICS
    known: dict[str, list[float]] = json.loads(note.read_text(encoding="utf-8")) if is_file(note) else {}

    def probe(statistic: Statistic, shares: Sequence[float]) -> list[float]:
        made_by = {"statistic": statistic.__name__, "code": kernel_version(statistic.__module__), "shares": shares}
        made_of = {"backbone": backbone.identity, "segments": [segment.unit_id for segment in segments]}
        if (key := identity(made_by | made_of)) in known:
            return known[key]
        decoded = decode_batch(segments, embedding)
        frames = (backbone.preprocess(f.rgb_FHWC) for f in decoded.frames if len(f.seconds_F) > 1)
        found = statistic(backbone.vit, frames, shares)
        if not decoded.failures:
            known[key] = found
            write_json(note, known)
        return found

    return GridInputs(backbone.vit.shape, probe, trained)


def list_configs(inputs: GridInputs, backbone: Backbone, config: SweepConfig) -> list[MethodConfig]:
    """Return the settings of all methods that this tower can run; a method that refuses it is named in one line."""
    configs: list[MethodConfig] = []
    for method in config.methods:
        try:
            for candidate in GRIDS[method](inputs, config.density):
                with_local_weights(candidate).build(backbone.vit)
                configs.append(candidate)
        except ValueError as error:
            print(f"  sweep: {method} is left out: {error}", flush=True)
    return configs


def list_ranges(inputs: GridInputs, configs: Sequence[MethodConfig]) -> dict[str, Ranges]:
    """Return what a search may try of the methods whose grids these settings are."""
    methods = dict.fromkeys(config.method for config in configs)
    return {method: RANGES[method](inputs) for method in methods if method in RANGES}


def choose(scores: Sequence[SettingScore], per_method: int) -> list[Setting]:
    """Choose the settings that are measured on test clips: of each method those that hold most of its own frontier.

    One after the other, the setting is taken that adds most area below the method's frontier of quality against cost,
    of those whose cost is OTHER_COST away from all that are taken: a crowd around the best one tells less than a curve.
    Area counts from half the best quality of all: nobody runs what lies below. Where no other adds area, the best of
    those follow that cost something else, so that a curve is seen on its whole range. Of settings that are as good at
    the same cost, the one is taken that computes fewest frames: by the clock, a frame left out saves all that it costs,
    tokens left out of a frame save less.

    Args:
        scores: On validation clips alone: test clips must not choose.
        per_method: At most so many of each method. A method that is worth nothing keeps its best setting.
    """
    worst = (0.0, 0.0)
    if scores:
        worst = (-max(score.gflops_per_frame for score in scores), max(map(quality, scores)) * WORTHLESS)
    by_method: dict[str, list[SettingScore]] = defaultdict(list)
    for score in scores:
        by_method[score.setting.method].append(score)
    chosen: list[Setting] = []
    for members in by_method.values():
        taken = _most_area(members, per_method, worst)
        taken += _elsewhere(members, taken, per_method - len(taken), worst[1])
        taken = taken or [max(members, key=quality)]
        chosen += [score.setting for score in sorted(taken, key=lambda score: score.gflops_per_frame)]
    return chosen


def _most_area(members: Sequence[SettingScore], count: int, worst: tuple[float, float]) -> list[SettingScore]:
    def area(some: Sequence[SettingScore]) -> float:
        return hypervolume([-one.gflops_per_frame for one in some], [quality(one) for one in some], worst=worst)

    taken: list[SettingScore] = []
    while len(taken) < count:
        apart = [one for one in members if _costs_apart(one, taken)]
        best = max(apart, key=lambda one: area([*taken, one]), default=None)
        if best is None or area([*taken, best]) <= area(taken):
            break
        taken.append(_fewest_frames(best, apart))
    return taken


def _fewest_frames(best: SettingScore, others: Sequence[SettingScore]) -> SettingScore:
    as_good = [one for one in others if not _costs_apart(one, [best]) and quality(one) >= SAME_QUALITY * quality(best)]
    return min([best, *as_good], key=lambda one: one.computed_share)


def _elsewhere(
    members: Sequence[SettingScore], taken: Sequence[SettingScore], count: int, least: float
) -> list[SettingScore]:
    """Return the best settings whose cost is OTHER_COST away from all that are taken."""
    more: list[SettingScore] = []
    for one in sorted(members, key=quality, reverse=True):
        if len(more) < count and _costs_apart(one, [*taken, *more]) and quality(one) > least:
            more.append(one)
    return more


def _costs_apart(one: SettingScore, others: Sequence[SettingScore]) -> bool:
    pairs = [sorted((one.gflops_per_frame, other.gflops_per_frame)) for other in others]
    return all(more >= OTHER_COST * less for less, more in pairs)


def write_chosen(store: Store, chosen: Sequence[Setting]) -> None:
    """Keep the choice, so that later stages can run by themselves."""
    write_json(store.root / "chosen.json", [config_to_dict(setting.config) for setting in chosen])


def read_chosen(store: Store, name: Callable[[MethodConfig], Setting]) -> list[Setting]:
    """Return the settings that the last sweep chose.

    Raises:
        FileNotFoundError: No sweep has run in this results folder.
    """
    path = store.root / "chosen.json"
    if not is_file(path):
        raise FileNotFoundError(
            f"chosen settings: got no {path}, expected what a sweep chose; run the sweep stage first"
        )
    return [name(config_from_dict(row)) for row in json.loads(path.read_text(encoding="utf-8"))]
