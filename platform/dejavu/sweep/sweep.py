"""Sweep with Ray Tune on validation clips: the grids, and a search beyond them.

A trial is one setting. What it computes lies in the store by identity, so a grid that was killed goes on where it
stopped and a finished one starts no trial; Tune's own record is restored as well, which is what a search goes on from.
Each experiment is a folder of `tune/` in the store, with TensorBoard's files.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from optuna.distributions import distribution_to_json
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from dejavu.cluster.cluster import Pool, own_handlers
from dejavu.embedding.batch import EmbedContext, plan
from dejavu.embedding.stored import clips_identity
from dejavu.observability.events import Work, log_event, stage_span
from dejavu.stages.score import EvalSet, SettingScore, score_settings
from dejavu.storage.one_line import OneLineError
from dejavu.storage.setting import Setting
from dejavu.storage.store import identity
from dejavu.storage.store_path import StorePath, is_file, listed, ray_storage
from dejavu.sweep.method_search import MethodSearch, Name
from dejavu.sweep.study import SweepConfig
from dejavu.sweep.trial import Part, cut_eval_set, quality, reached_by, run_trial
from dejavu.sweep.tried import Tried, read_tried, write_tried
from reuse_models.registry import config_from_dict
from tune_spaces.grid_inputs import Ranges

MAX_LOST = 3
"""Times that a trial is begun again after its process or machine died; what it had written is not done again."""
TRIED = "tried.json"
"""In the folder of an experiment that has ended."""


class SweepError(OneLineError):
    """A setting could not be tried; one line says why and what to do."""


@dataclass(frozen=True, slots=True)
class TrialContext:
    """What all trials share."""

    original: Setting
    """Dense; its embeddings of the evaluation set's clips must be in the store."""
    eval_set: EvalSet
    """Validation clips and their questions."""
    embedding: EmbedContext
    pool: Pool
    """GPUs that a trial holds."""

    @property
    def held(self) -> dict[str, float]:
        """What a trial holds: Tune runs as many at once as the cluster, growing or shrinking, has room for."""
        return {"gpu": self.pool.gpus_per_actor} if self.pool.gpus_per_actor else {"cpu": 1.0}

    @property
    def num_at_once(self) -> int:
        """Trials for which the cluster has room now."""
        resources = ray.cluster_resources()
        return max(1, *(int(resources.get(name.upper(), 0) / amount) for name, amount in self.held.items()))

    def trainable(self, parts: Sequence[Part]) -> Any:
        """Return a trial as Tune takes it."""
        trial = tune.with_parameters(
            run_trial, parts=tuple(parts), embedding=self.embedding, original=self.original.to_row()
        )
        return tune.with_resources(trial, self.held)


def sweep(settings: Sequence[Setting], context: TrialContext) -> int:
    """Embed the evaluation set's clips under every setting with Ray Tune; return how many settings lacked something.

    Raises:
        SweepError: A trial failed, or was lost more often than it is begun again.
    """
    pending = _pending(settings, context)
    with stage_span(Work(stage="sweep", total=len(pending), unit="settings", kept=len(settings) - len(pending))):
        if pending:
            names = [setting.setting_id for setting in settings]
            parts = {"settings": names, "clips": clips_identity(context.eval_set.clips), "held": context.held}
            _run_experiment(
                f"sweep-{identity(parts)}",
                context.trainable([Part(context.eval_set, 1.0)]),
                tune.TuneConfig(metric="quality", mode="max", reuse_actors=True, trial_dirname_creator=_folder_name),
                {"setting": tune.grid_search([setting.to_row() for setting in pending])},
                context,
            )
    return len(pending)


def _pending(settings: Sequence[Setting], context: TrialContext) -> list[Setting]:
    return [setting for setting in settings if plan(context.eval_set.clips, [setting], context.embedding)]


def search(
    ranges: Mapping[str, Ranges], grid: Sequence[SettingScore], context: TrialContext, config: SweepConfig, name: Name
) -> list[Tried]:
    """Search for settings that add to the frontier of their method, quality up and GFLOPs per frame down.

    A trial reports after each share `config.stop_after` of the clips, and asynchronous successive halving stops it
    where its shortfall (`shortfall`) is larger than that of half of the trials before it on the same clips. One
    that adds to its method's frontier has none and is never stopped, whatever it costs.

    `grid` are the grid's scores on all clips.

    Returns:
        What was tried, also by the same search before; the whole ones have all their embeddings.

    Raises:
        SweepError: As of `sweep`.
    """
    folder = f"search-{_search_identity(ranges, grid, context, config)}"
    note = context.embedding.store.root / "tune" / folder / TRIED
    if not is_file(note):
        settings = [score.setting for score in grid]
        parts = []
        for share, eval_set in cut_eval_set(context.eval_set, config.stop_after):
            scores = score_settings(settings, context.original, eval_set, context.embedding)
            parts.append(Part(eval_set, share, reached_by(scores)))
        searcher = MethodSearch(ranges, grid, name, num_samples=config.num_samples, seed=config.seed)
        with stage_span(Work(stage="search", total=config.num_samples * len(ranges), unit="settings")):
            _run_experiment(
                folder,
                context.trainable(parts),
                tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=halving(len(parts)),
                    num_samples=config.num_samples * len(ranges),
                    reuse_actors=True,
                    trial_dirname_creator=_folder_name,
                ),
                None,
                context,
            )
    tried = read_tried(note, name)
    if pending := _pending([one.setting for one in tried if one.whole], context):  # embeddings were removed since
        sweep(pending, context)
    return tried


def halving(num_parts: int) -> AsyncHyperBandScheduler:
    """Return what stops a trial that lies further below its method's grid than half of the trials before it.

    Lying below is what counts, and not quality: by quality alone every cheap setting would be stopped.
    """
    return AsyncHyperBandScheduler(
        time_attr="rung", metric="shortfall", mode="min", max_t=2**num_parts, reduction_factor=2
    )


def _search_identity(
    ranges: Mapping[str, Ranges], grid: Sequence[SettingScore], context: TrialContext, config: SweepConfig
) -> str:
    """Name a search by everything that it follows from; the grid's qualities stand for questions, prompt and head."""
    limits = {
        method: {name: distribution_to_json(limit) for name, limit in sorted(one.space.items())}
        for method, one in ranges.items()
    }
    return identity(
        {
            "limits": limits,
            "grid": sorted((score.setting.setting_id, round(quality(score), 6)) for score in grid),
            "clips": clips_identity(context.eval_set.clips),
            "config": [config.num_samples, config.seed, config.stop_after],
            "held": context.held,
        }
    )


class _Told(tune.Callback):
    """Tells how many trials of a stage have ended."""

    def __init__(self, stage: str) -> None:
        self.stage, self.ended = stage, 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended += 1
        log_event("progress", {"stage": self.stage, "done": self.ended})


def _run_experiment(
    name: str, trainable: Any, config: tune.TuneConfig, space: dict[str, Any] | None, context: TrialContext
) -> None:
    """Run an experiment, or go on with it where it was killed, and write what it tried."""
    root = context.embedding.store.root / "tune"
    path, filesystem = ray_storage(root)
    address = f"{path}/{name}"
    if _was_killed(root / name) and tune.Tuner.can_restore(address, storage_filesystem=filesystem):
        print(f"  {name}: goes on where it was killed", flush=True)
        tuner = tune.Tuner.restore(
            address, trainable, resume_errored=True, param_space=space, storage_filesystem=filesystem
        )
    else:
        _remove(root / name)
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=config,
            run_config=tune.RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=MAX_LOST),
                callbacks=[_Told(name.partition("-")[0])],
                verbose=0,
            ),
        )
    started, clock = time.time(), time.monotonic()
    with own_handlers():
        ended = tuner.fit()
    wall_s = time.monotonic() - clock
    if ended.errors:
        reason = str(ended.errors[0]).strip().splitlines()[-1]
        raise SweepError(
            f"sweep: got {len(ended.errors)} of {len(ended)} trials failed ({reason}), expected none; run the same "
            "command again: what is done is kept"
        )
    if ended.num_terminated < len(ended):  # Tune takes Ctrl-C for the end of the experiment
        raise KeyboardInterrupt
    results = [(one.config or {}, one.metrics or {}) for one in (ended[index] for index in range(len(ended)))]
    write_tried(root / name / TRIED, results)
    now = [last["embed_s"] for _, last in results if last["timestamp"] >= started]
    if now:
        overhead_s = overhead_per_trial(wall_s, now, context.num_at_once)
        print(
            f"  {name}: {len(now)} trials in {wall_s:.0f} s, {context.num_at_once} at once, {overhead_s:.2f} s a trial "
            f"beside their own work; tensorboard --logdir {shlex.quote(str(root / name))}",
            flush=True,
        )


def overhead_per_trial(wall_s: float, own_s: Sequence[float], num_at_once: int) -> float:
    """Return the seconds that a trial costs beyond decoding, encoding and scoring, starting processes included.

    `wall_s` is of the whole experiment, `own_s` each trial's own work; there was room for `num_at_once` trials.
    """
    return (wall_s - sum(own_s) / min(num_at_once, len(own_s))) / len(own_s)


def _was_killed(folder: StorePath) -> bool:
    """Whether an experiment began there and did not end; one whose newest record was torn begins anew."""
    records = listed(folder, "experiment_state-*.json")
    if is_file(folder / TRIED) or not records:
        return False
    try:
        json.loads(records[-1].read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _remove(folder: StorePath) -> None:
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmdir(recursive=True)


def _folder_name(trial: Any) -> str:
    """Name a trial's folder, and so TensorBoard's run, by its setting."""
    config = config_from_dict(trial.config["setting"]["config"])
    words = re.sub(r"[^\w=.+-]+", "_", f"{config.method} {config.setting}")
    return f"{words[:80]}-{trial.trial_id}"
