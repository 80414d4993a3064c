"""Sweep the grids with Ray Tune on validation clips, and choose what is worth measuring on test clips.

A trial is one setting: it embeds the validation clips that lack it, in its own process, and scores them. What a trial
computes lies in the store by identity, so a sweep that was killed goes on where it stopped and a finished one starts
no trial.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray import tune

from dejavu.backbones.load import Backbone
from dejavu.cluster import Pool
from dejavu.frontier import hypervolume
from dejavu.records import Failure, Transcoded
from dejavu.setting import Setting
from dejavu.stages.batch import Batch, Embedding, cut, decode_batch, plan
from dejavu.stages.encode import BatchEncoder
from dejavu.stages.read import clips_identity
from dejavu.stages.score import Exam, SettingScore, score_settings
from dejavu.store import Store, identity, write_json
from reuse_models.cmc import distance_quantiles
from reuse_models.method import MethodConfig
from reuse_models.registry import config_from_dict, config_to_dict
from tune_spaces.grids import GRIDS
from tune_spaces.tower import Density, Tower, Trained

STAGE = "sweep"
MAX_LOST = 3
"""Times that a trial is begun again after its process or machine died; what it had written is not done again."""


class SweepError(RuntimeError):
    """A setting could not be tried; one line says why and what to do."""


OTHER_COST = 1.1
"""Settings that differ by less in cost tell the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Which settings are tried, and how many of each method go on to the test clips."""

    methods: tuple[str, ...] = tuple(GRIDS)
    """In the order of tune_spaces/grids.py."""
    density: Density = "demo"
    chosen_per_method: int = 4
    """Settings per method measured on test clips: those that hold most of its frontier on validation clips."""
    probe_clips: int = 8
    """Validation clips on which CMC's distances are looked at."""
    diffrate_schedules: tuple[Path, ...] = ()
    """Files written by jobs/search_schedules.py for this backbone, tried beside those that the train stage searches."""

    def __post_init__(self) -> None:
        """Check names and counts.

        Raises:
            ValueError: A method has no grid, or a count is below 1.
        """
        if unknown := sorted(set(self.methods) - set(GRIDS)):
            raise ValueError(f"sweep.methods: got {unknown}, expected some of {', '.join(GRIDS)}; check the names")
        for name in ("chosen_per_method", "probe_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"sweep.{name}: got {getattr(self, name)}, expected 1 or more; raise it")


def list_configs(
    backbone: Backbone,
    clips: Sequence[Transcoded],
    embedding: Embedding,
    config: SweepConfig,
    trained: Trained,
) -> list[MethodConfig]:
    """Return the settings of all methods that this tower can run; a method that refuses it is named in one line.

    Args:
        backbone: The tower.
        clips: Validation clips, of which the first few show how far tokens move.
        embedding: Where the clips lie.
        config: Which methods, and how many settings.
        trained: What training has made for this tower.
    """

    def quantiles(shares: Sequence[float]) -> list[float]:
        probes = sorted(clips, key=lambda clip: clip.content_id)[: config.probe_clips]
        segments = [segment for segment in cut(probes, embedding.config.chunk_frames * 4) if segment.start == 0]
        frames = decode_batch(Batch(tuple(segments), ()), embedding).frames
        return distance_quantiles(
            backbone.vit, [backbone.preprocess(f.rgb_FHWC) for f in frames if len(f.seconds_F) > 1], shares
        )

    tower = Tower(backbone.vit.shape, quantiles, trained)
    configs: list[MethodConfig] = []
    for method in config.methods:
        try:
            for candidate in GRIDS[method](tower, config.density):
                candidate.build(backbone.vit)
                configs.append(candidate)
        except ValueError as error:
            print(f"  sweep: {method} is left out: {error}", flush=True)
    return configs


def sweep(settings: Sequence[Setting], original: Setting, exam: Exam, embedding: Embedding, pool: Pool) -> int:
    """Embed the exam's clips under every setting with Ray Tune; return how many settings lacked something.

    Args:
        settings: Those to try.
        original: Dense; its embeddings of these clips must be in the store.
        exam: Validation clips and their questions.
        embedding: Backbone, store and how clips are cut.
        pool: GPUs that a trial holds.

    Raises:
        SweepError: A trial failed, or was lost more often than it is begun again.
    """
    pending = [setting for setting in settings if plan(exam.clips, [setting], embedding)]
    if not pending:
        return 0
    name = identity({"settings": [setting.setting_id for setting in pending], "clips": clips_identity(exam.clips)})
    held = {"gpu": pool.gpus_per_actor} if pool.gpus_per_actor else {"cpu": 1.0}
    trial = tune.with_parameters(_trial, exam=exam, embedding=embedding, original=original.to_row())
    results = tune.Tuner(
        tune.with_resources(trial, held),
        param_space={"setting": tune.grid_search([setting.to_row() for setting in pending])},
        tune_config=tune.TuneConfig(metric="quality", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"sweep-{name}",
            storage_path=str(embedding.store.root.resolve() / "tune"),
            failure_config=tune.FailureConfig(max_failures=MAX_LOST),
            verbose=0,
        ),
    ).fit()
    if results.errors:
        reason = str(results.errors[0]).strip().splitlines()[-1]
        raise SweepError(
            f"sweep: got {len(results.errors)} of {len(pending)} trials failed ({reason}), expected none; run the same "
            "command again: what is done is kept"
        )
    return len(pending)


def _trial(config: dict[str, Any], exam: Exam, embedding: Embedding, original: dict[str, Any]) -> None:
    """One setting: embed what it lacks, score, report."""
    setting = Setting.from_row(config["setting"])
    encoder = _encoder(embedding)
    start = time.monotonic()
    failures: list[Failure] = []
    for batch in plan(exam.clips, [setting], embedding):
        decoded = decode_batch(batch, embedding)
        failures += decoded.failures
        encoder.encode([setting], decoded)
    embedding.store.write_failures(STAGE, failures, part=setting.setting_id)
    score = score_settings([setting], Setting.from_row(original), exam, embedding)[0]
    tune.report({**validation_metrics(score), "embed_s": time.monotonic() - start})


@lru_cache(maxsize=1)
def _encoder(embedding: Embedding) -> BatchEncoder:
    """Trials that share a process share its backbone."""
    return BatchEncoder(embedding)


def quality(score: SettingScore) -> float:
    """What settings are chosen by: Acc@GQA, or the share of right answers, else the mean cosine to Original."""
    if score.task:
        return score.task.acc_gqa
    return score.fidelity.mean if score.accuracy is None else score.accuracy


def validation_metrics(score: SettingScore) -> dict[str, float]:
    """Return what Tune and the sweep's table show of a setting."""
    metrics = {
        "quality": quality(score),
        "gflops_per_frame": score.gflops_per_frame,
        "reuse_rate": score.reuse_rate,
        "cosine_to_dense": score.fidelity.mean,
    }
    if score.accuracy is not None:
        metrics["accuracy"] = score.accuracy
    if score.task:
        metrics |= {"acc_gqa": score.task.acc_gqa, "miop": score.task.miop}
    return metrics


def choose(scores: Sequence[SettingScore], per_method: int) -> list[Setting]:
    """Choose the settings that are measured on test clips: of each method those that hold most of its own frontier.

    One after the other, the setting is taken that adds most area below the method's frontier of quality against cost.
    Area counts from half the best quality of all: nobody runs what lies below. Where no other adds area, the best of
    those follow that cost something else, so that a curve is seen on its whole range.

    Args:
        scores: On validation clips alone: test clips must not choose.
        per_method: At most so many of each method. A method that is worth nothing keeps its best setting.
    """
    worst = (-max(score.gflops_per_frame for score in scores), max(map(quality, scores)) / 2) if scores else (0.0, 0.0)
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
    while len(taken) < min(count, len(members)):
        best = max(members, key=lambda one: area([*taken, one]))
        if area([*taken, best]) <= area(taken):
            break
        taken.append(best)
    return taken


def _elsewhere(
    members: Sequence[SettingScore], taken: Sequence[SettingScore], count: int, least: float
) -> list[SettingScore]:
    """Return the best settings whose cost is OTHER_COST away from all that are taken."""
    more: list[SettingScore] = []
    for one in sorted(members, key=quality, reverse=True):
        apart = all(
            max(one.gflops_per_frame, other.gflops_per_frame)
            >= OTHER_COST * min(one.gflops_per_frame, other.gflops_per_frame)
            for other in [*taken, *more]
        )
        if len(more) < count and apart and quality(one) > least:
            more.append(one)
    return more


def write_chosen(store: Store, chosen: Sequence[Setting]) -> None:
    """Keep the choice, so that later stages can run by themselves."""
    write_json(store.root / "chosen.json", [config_to_dict(setting.config) for setting in chosen])


def read_chosen(store: Store, name: Callable[[MethodConfig], Setting]) -> list[Setting]:
    """Return the settings that the last sweep chose.

    Raises:
        FileNotFoundError: No sweep has run in this results folder.
    """
    path = store.root / "chosen.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"chosen settings: got no {path}, expected what a sweep chose; run the sweep stage first"
        )
    return [name(config_from_dict(row)) for row in json.loads(path.read_text(encoding="utf-8"))]
