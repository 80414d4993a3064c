"""What is learned from training clips: add-ons of ReuseViT, schedules, a token, what answers questions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from dejavu.cluster import cluster
from dejavu.embedding.memory import shrink_to_memory
from dejavu.embedding.texts import embed_texts
from dejavu.embedding.windows import num_windows
from dejavu.observability.events import Work, log_event, stage_span
from dejavu.observability.live_curves import Curve, LiveCurves, See, ending
from dejavu.observability.tracking import LoggedAddon, Run
from dejavu.pipeline.job import Job, tags
from dejavu.records import Split, Transcoded
from dejavu.stages.class_readers import make_readers
from dejavu.stages.embed import embed_clips
from dejavu.stages.fit_head import HeadFit, check_fit_memory, fit_head
from dejavu.stages.residual_token import fit_residual_token
from dejavu.stages.search_schedules import search_schedules
from dejavu.stages.temp_clip import TrainedHead, open_head
from dejavu.stages.train import MIN_WINDOWS, TrainedAddon, long_enough, train_addons
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath, is_file
from dejavu.tasks.class_readers import ClassReaders


def fit_addons(job: Job) -> None:
    """Fit ReuseViT at each target on training clips, with the dense embeddings of the store as teacher."""
    experiment = job.experiment
    clips = {split: job.of_split(split) for split in ("train", "val")}
    windows = num_windows(long_enough(clips["train"]))
    if too_few(job, windows):
        job.say(f"{len(clips['train'])} training clips give {windows} windows: ReuseViT is not trained")
        return
    embed_dense(job)
    with stage_span(Work(stage="train", total=experiment.train.visits(windows), unit="epochs")):
        result = train_addons(clips, job.original, job.embedding, experiment.train, partial(live_curves, job))
    job.say(f"trained {result.num_trained} of {len(result.addons)} add-ons, {len(result.failures)} clips unreadable")
    for addon in result.addons:
        log_once(job, addon.weights, ending(fit_run(job, addon), addon.weights.parent, job.tracking))
        if addon.achieved_rate is not None:
            print(f"  target={addon.target:g}: requested {addon.target:.3f}, achieved {addon.achieved_rate:.3f}")
    job.check()


def too_few(job: Job, windows: int) -> bool:
    """Whether so few training windows teach nothing; where a recipe says what is learned from, any will do."""
    return not windows or (job.experiment.is_own and windows < MIN_WINDOWS)


def embed_dense(job: Job) -> dict[Split, list[Transcoded]]:
    """Embed what Original lacks of training and validation clips, for what learns from it; return the clips."""
    pool = cluster.actor_pool(job.experiment.num_workers, job.experiment.gpus_per_worker)
    embedding, pool = shrink_to_memory(job.backbone, [job.original], job.embedding, pool)
    splits: tuple[Split, ...] = ("train", "val")
    clips = {split: job.of_split(split) for split in splits}
    for split, some in clips.items():
        embed_clips(some, [job.original], embedding, pool, split)
    return clips


def live_curves(job: Job, folders: Mapping[str, StorePath]) -> See:
    """Open a run in MLflow and one in TensorBoard for each target, to be seen while the fits go on."""
    runs = {target: Run(name=f"fit target={target}", params={}, metrics={}, tags=tags(job)) for target in folders}
    events = job.results / "tensorboard"
    print(f"live curves: {job.tracking.ui_command}, or tensorboard --logdir {shlex.quote(str(events))}", flush=True)
    live = LiveCurves(job.tracking, runs, folders, events)

    def see(curves: Mapping[str, Curve]) -> None:
        log_event("progress", {"stage": "train", "done": max(map(len, curves.values()), default=0)})
        live.see(curves)

    return see


def log_once(job: Job, weights: StorePath, run: Run) -> None:
    """Log what made these weights, unless that is done: a run may have ended between the fit and its logging."""
    note = weights.with_name("mlflow.json")
    if not is_file(note):
        write_json(note, {"run_id": job.tracking.log(run, [])})


def fit_run(job: Job, addon: TrainedAddon) -> Run:
    """Return what MLflow keeps of a fit: its curves, requested against achieved reuse, and the weights as a model."""
    return Run(
        name=f"fit {addon.config.name}",
        params={"target": addon.target, "biases": dict(addon.biases)},
        metrics={"requested_rate": addon.target, "achieved_rate": addon.achieved_rate},
        tags=tags(job),
        curves=_curves(addon.curve, "step"),
        addon=LoggedAddon(addon.weights, job.experiment.backbone, job.experiment.image_px),
    )


def fit_schedules(job: Job) -> None:
    """Search DiffRate's schedule for each FLOP target on training clips."""
    clips = job.of_split("train")
    if not clips:
        job.say("no training clips: DiffRate's schedules are not searched")
        return
    cluster.wait_for_nodes(job.experiment.gpus_per_worker)
    result = search_schedules(clips, job.backbone, job.embedding, job.experiment.schedules)
    job.say(f"searched {len(result.found)} of {len(result.schedules)} DiffRate schedules")
    for share, found in sorted(result.found.items()):
        cosines = f"{found.cosine:.3f}, of the same rate in every layer {found.uniform_cosine:.3f}"
        print(f"  diffrate {share:g}: costs {found.schedule.achieved_share:.3f} of dense, cosine to it {cosines}")
    job.check()


def fit_token(job: Job) -> None:
    """Fit the token of ResidualViT on training clips."""
    clips = {split: job.of_split(split) for split in ("train", "val")}
    if too_few(job, num_windows(long_enough(clips["train"]))):
        job.say("too few training clips: ResidualViT is left out")
        return
    embed_dense(job)
    cluster.wait_for_nodes(job.experiment.gpus_per_worker)
    result = fit_residual_token(clips, job.original, job.backbone, job.embedding, job.experiment.residual)
    judged = "" if result.cosine is None else f": cosine {result.cosine:.3f}, without any {result.cosine_without:.3f}"
    job.say(f"{'fitted' if result.is_new else 'found'} ResidualViT's token{judged}")
    job.check()


def train_head(job: Job) -> TrainedHead | None:
    """Return the head that answers questions, fitted on Original's embeddings unless a checkpoint is given."""
    experiment, task = job.experiment, job.experiment.task
    if task.head == "zero_shot":
        return None
    if not task.trains:
        return open_head(task, job.backbone, experiment.prompt)
    clips = embed_dense(job)
    questions = [*job.questions("train"), *job.questions("val")]
    check_fit_memory(task, job.backbone, sum(map(len, clips.values())))
    fitted = fit_head([*clips["train"], *clips["val"]], questions, job.original, job.embedding, task, experiment.prompt)
    job.say(f"{'trained' if fitted.is_new else 'found'} a TempCLIP head, {len(fitted.curve)} epochs: {fitted.weights}")
    log_once(job, fitted.weights, head_run(job, fitted))
    return open_head(task, job.backbone, experiment.prompt, fitted.weights)


def head_run(job: Job, fitted: HeadFit) -> Run:
    """Return what MLflow keeps of a head's fit: its curves and weights."""
    files = (fitted.weights, fitted.weights.with_suffix(".json"))
    curves = _curves(fitted.curve, "epoch")
    return Run(name="fit temp_clip", params={}, metrics={}, tags=tags(job), artifacts=files, curves=curves)


def _curves(entries: Sequence[Mapping[str, float]], step: str) -> dict[str, list[tuple[int, float]]]:
    """Return each number of a fit by its name, as points of a curve."""
    names = sorted({name for entry in entries for name in entry} - {step})
    return {name: [(int(entry[step]), entry[name]) for entry in entries if name in entry] for name in names}


def fit_class_readers(job: Job) -> ClassReaders | None:
    """Return what tells a clip's class, made on Original's embeddings; nothing where clips have no classes."""
    if job.experiment.dataset != "class_folders":
        return None
    clips = embed_dense(job)

    def embed(names: Sequence[str]) -> Tensor:
        texts = [job.experiment.prompt.format(question="", answer=name) for name in names]
        return embed_texts(texts, job.backbone, job.store)

    has_words = job.backbone.text is not None
    readers = make_readers(clips, job.dataset.questions, job.original, job.embedding, embed if has_words else None)
    job.say(f"fitted a probe of {len(readers.bias_C)} classes on {len(readers.train.label_N)} clips")
    return readers
