"""Which settings are measured: given ones, published ones, and those that a sweep chooses on validation clips."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from dejavu.backbones.load import Backbone
from dejavu.cluster import cluster
from dejavu.embedding.memory import shrink_to_memory
from dejavu.experiment import Experiment
from dejavu.pipeline.job import Job, tags
from dejavu.stages.embed import embed_clips
from dejavu.stages.residual_token import read_residual_token
from dejavu.stages.score import score_settings
from dejavu.stages.search_schedules import read_schedules
from dejavu.stages.train import read_addons
from dejavu.storage.setting import Setting, name_setting, with_local_weights
from dejavu.storage.store_path import listed
from dejavu.sweep.study import choose, list_configs, list_ranges, look_at_tower, read_chosen, some_of, write_chosen
from dejavu.sweep.sweep import TrialContext, search, sweep
from dejavu.sweep.tried import Tried, tried_runs
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.diffrate.schedule import read_schedule
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from tune_spaces.grid_inputs import AddonCurve, Trained

PUBLISHED_REFRESH = (4, 8, 32, None)
"""Frames after which the published points begin a new segment."""


def settings_of(job: Job) -> list[Setting]:
    """Return what is measured beside Original: swept and chosen now or before, and the published ones."""
    published = [job.name(config) for config in published_configs(job)]
    return [*(choose_settings(job) if job.runs("sweep") else read_chosen(job.store, job.name)), *published]


def choose_settings(job: Job) -> list[Setting]:
    """Sweep the grids on validation clips and choose; without validation clips, every setting goes on."""
    experiment, original = job.experiment, job.original
    validation = some_of(job.of_split("val"), experiment.sweep.num_frames)
    probes = validation or job.of_split("test")
    addons = [AddonCurve(addon.config, tuple(addon.biases.values())) for addon in read_addons(job.embedding, original)]
    searched = [schedule.config() for schedule in read_schedules(job.embedding, job.backbone)]
    schedules = tuple(dict.fromkeys([*searched, *given_schedules(experiment, job.backbone)]))
    token = read_residual_token(job.embedding, job.backbone)
    trained = Trained(tuple(addons), schedules, token.config if token else None)
    tower = look_at_tower(job.backbone, probes, job.embedding, experiment.sweep, trained)
    sweep_config = experiment.sweep
    if experiment.is_own and not addons:
        job.say("ReuseViT is left out of plot and table: nothing has been trained for it")
        sweep_config = replace(sweep_config, methods=tuple(name for name in sweep_config.methods if name != "reusevit"))
    configs = list_configs(tower, job.backbone, sweep_config)
    settings = [job.name(config) for config in configs]
    if not validation:
        job.say(f"no validation clips: all {len(settings)} settings are measured")
        write_chosen(job.store, settings)
        return settings
    pool = cluster.actor_pool(experiment.num_workers, experiment.gpus_per_worker)
    embedding, pool = shrink_to_memory(job.backbone, [original, *settings], job.embedding, pool)
    embed_clips(validation, [original], embedding, pool, "val")
    eval_set = job.eval_set("val", validation)
    context = TrialContext(original, eval_set, embedding, pool)
    num_trials = sweep(settings, context)
    scores = score_settings(settings, original, eval_set, job.embedding)
    stopped: list[Tried] = []
    if experiment.sweep.search == "optuna":
        name = partial(name_setting, backbone_identity=job.backbone.identity, embedding=experiment.embed.shaping())
        tried = search(list_ranges(tower, configs), scores, context, experiment.sweep, name)
        stopped = [one for one in tried if not one.whole]
        found = [one.setting for one in tried if one.whole]
        scores = score_settings([*settings, *found], original, eval_set, job.embedding)
        job.say(f"searched {len(tried)} settings beyond the grid, {len(stopped)} of them stopped early")
    chosen = choose(scores, experiment.sweep.chosen_per_method)
    write_chosen(job.store, chosen)
    job.tried = tried_runs(scores, stopped, chosen, tags(job))
    counts = f"swept {num_trials} of {len(settings)} settings, chose {len(chosen)}"
    job.say(f"{counts} on {len(validation)} validation clips")
    return chosen


def published_configs(job: Job) -> list[MethodConfig]:
    """Return the published checkpoints at the published refresh intervals.

    Each is read once here, so that a broken one ends the run before any work.
    """
    folder = job.experiment.published_checkpoints
    configs: list[MethodConfig] = []
    for path in listed(folder, "*.ckpt") if folder else []:
        weights, variant = str(path.resolve()), job.experiment.variant
        config = ReuseVitConfig(weights=weights, variant=variant, reference_state="grouped")
        with_local_weights(config).build(job.backbone.vit)
        configs += [replace(config, refresh=refresh) for refresh in PUBLISHED_REFRESH]
    return configs


def given_schedules(experiment: Experiment, backbone: Backbone) -> list[DiffRateConfig]:
    """Read the schedules that were given as files; a broken one ends the run before any work."""
    return [read_schedule(path, backbone.vit.shape).config() for path in experiment.sweep.diffrate_schedules]
