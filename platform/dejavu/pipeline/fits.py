"""What is learned from training clips: add-ons of ReuseViT, schedules, a token, what answers questions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from dejavu.cluster import cluster
from dejavu.datasets.class_folders import words_of_class
from dejavu.embedding.memory import shrink_to_memory
from dejavu.embedding.stored import read_beside
from dejavu.embedding.texts import embed_texts
from dejavu.embedding.windows import num_windows
from dejavu.observability.events import Work, log_event, stage_span
from dejavu.observability.live_curves import Curve, LiveCurves, See, ending
from dejavu.observability.tracking import LoggedAddon, Run
from dejavu.pipeline.job import Job, tags
from dejavu.records import Split, Transcoded
from dejavu.stages.embed import embed_clips
from dejavu.stages.fit_head import check_fit_memory, fit_head
from dejavu.stages.residual_token import fit_residual_token
from dejavu.stages.search_schedules import search_schedules
from dejavu.stages.temp_clip import TrainedHead, open_head
from dejavu.stages.train import MIN_WINDOWS, long_enough, train_addons
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath, is_file
from dejavu.tasks.class_readers import ClassReaders, Pooled, fit_readers
from dejavu.tasks.retrieval import pool


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
        run = Run(
            name=f"fit {addon.config.name}",
            params={"target": addon.target, "biases": dict(addon.biases)},
            metrics={"requested_rate": addon.target, "achieved_rate": addon.achieved_rate},
            tags=tags(job),
            curves=_curves(addon.curve, "step"),
            addon=LoggedAddon(addon.weights, experiment.backbone, experiment.image_px),
        )
        log_once(job, addon.weights, ending(run, addon.weights.parent, job.tracking))
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
    files, curves = (fitted.weights, fitted.weights.with_suffix(".json")), _curves(fitted.curve, "epoch")
    run = Run(name="fit temp_clip", params={}, metrics={}, tags=tags(job), artifacts=files, curves=curves)
    log_once(job, fitted.weights, run)
    return open_head(task, job.backbone, experiment.prompt, fitted.weights)


def _curves(entries: Sequence[Mapping[str, float]], step: str) -> dict[str, list[tuple[int, float]]]:
    """Return each number of a fit by its name, as points of a curve."""
    names = sorted({name for entry in entries for name in entry} - {step})
    return {name: [(int(entry[step]), entry[name]) for entry in entries if name in entry] for name in names}


def fit_class_readers(job: Job) -> ClassReaders | None:
    """Return what tells a clip's class, made on Original's embeddings; nothing where clips have no classes.

    It takes seconds, so that nothing is kept in the store.

    Raises:
        ValueError: A class has no training clip with embeddings.
    """
    if job.experiment.dataset != "class_folders":
        return None
    clips, questions = embed_dense(job), job.dataset.questions
    classes = questions[0].answers
    label_of = {question.clip_id: question.correct for question in questions}
    train, validation = (_pooled(clips[split], label_of, job) for split in ("train", "val"))
    names_CE = None
    if job.backbone.text is not None:
        texts = [job.experiment.prompt.format(question="", answer=words_of_class(name)) for name in classes]
        names_CE = embed_texts(texts, job.backbone, job.store).numpy()
    readers = fit_readers(classes, train, validation, names_CE)
    job.say(f"fitted a probe of {len(classes)} classes on {len(train.label_N)} clips")
    return readers


def _pooled(clips: Sequence[Transcoded], label_of: Mapping[str, int], job: Job) -> Pooled:
    found = {
        clip_id: pool(clip.embeddings_FE)
        for _, part, _ in read_beside(job.embedding, [job.original], job.original, clips)
        for clip_id, clip in part.items()
    }
    names = sorted(found)
    embeddings_NE = np.stack([found[name] for name in names]) if names else np.zeros((0, 0), np.float32)
    return Pooled(embeddings_NE, np.array([label_of[name] for name in names], np.int64))
