"""Transcode, the dense tower behind it, and what clips tell before anything is learned from them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from dejavu.cluster import cluster
from dejavu.cluster.ray_map import Row
from dejavu.datasets.splits import twins
from dejavu.datasets.video_folder import passed_over
from dejavu.embedding.memory import shrink_to_memory
from dejavu.pipeline.job import Job
from dejavu.records import Split
from dejavu.stages.transcode import Make, Run, one_task_each, transcode_clips, transcode_one
from dejavu.stages.transcode_embed import EmbedAsMade
from dejavu.storage.failed import say_odd, write_odd_csv
from dejavu.video.transcode_apart import transcode_apart


def transcode(job: Job) -> None:
    """Make what is lacking of the transcoded clips, where that was asked for; the others are taken as they are."""
    experiment = job.experiment
    if experiment.videos is not None and (others := passed_over(experiment.videos)):
        print(f"  passed over, no videos by their endings: {others}", flush=True)
    encode = partial(transcode_apart, limit_s=experiment.clip_limit_s)
    transcoded = transcode_clips(
        job.dataset.clips,
        job.store,
        experiment.transcode,
        job.backbone.frame_px,
        view=job.backbone.preprocess.view,
        make=partial(transcode_one, encode=encode) if job.runs("transcode") else None,
        run=run_of(job),
    )
    job.clips = transcoded.clips
    job.say(f"transcoded {transcoded.num_made} clips, {len(job.clips)} ready, {len(transcoded.failures)} failed")
    leave_twins_out(job)
    for line in say_odd(write_odd_csv(job.clips.values(), job.results)):
        print(f"  {line}", flush=True)
    job.check()


def run_of(job: Job) -> Run:
    """Return what embeds clips under Original as they are made, where all of some split will be and GPUs do it.

    On CPUs alone both would take the same cores. On a cluster that grows clips are made first: machines with GPUs are
    paid for, and would wait.
    """
    splits = embedded_whole(job)
    wanted = frozenset(clip.clip_id for clip in job.dataset.clips if clip.split in splits)
    gains = wanted and not cluster.grows() and cluster.gpus_per_actor(job.experiment.gpus_per_worker)
    return partial(embed_as_made, job, wanted) if gains else one_task_each


def embed_as_made(job: Job, wanted: Collection[str], make: Make, rows: Sequence[Row], kept: int) -> Iterator[Row]:
    """Make clips, and embed those that are wanted; a `Run` once job and wanted are given.

    A task makes as many clips as advance together: of a few, each is made by itself, so that all cores have some. In
    a store that has embeddings already, `embed_clips` finds out what it lacks.
    """
    fresh = not job.store.done(job.original.setting_id)
    if not fresh or len(rows) < job.embedding.config.streams * cluster.num_cpus():
        return one_task_each(make, rows, kept)
    pool = cluster.actor_pool(job.experiment.num_workers, job.experiment.gpus_per_worker)
    embedding, pool = shrink_to_memory(job.backbone, [job.original], job.embedding, pool)
    return EmbedAsMade(job.original, embedding, pool, wanted)(make, rows, kept)


def embedded_whole(job: Job) -> set[Split]:
    """Return the splits of which every clip is embedded under Original, unless there is too little to learn from."""
    experiment = job.experiment
    learns = experiment.fits("reusevit") or experiment.fits("residualvit")
    learns = learns or (
        job.runs("sweep", "embed") and (experiment.task.trains or experiment.dataset == "class_folders")
    )
    found: set[Split] = {"train", "val"} if learns else set()
    return found | {"test"} if job.runs("embed") else found


def leave_twins_out(job: Job) -> None:
    """Neither train on nor choose by a video that lies in the folder twice and is tested as well."""
    if not job.experiment.is_own:
        return
    splits = {clip.clip_id: clip.split for clip in job.dataset.clips}
    contents = {name: clip.content_id for name, clip in job.clips.items()}
    for name, other in twins(contents, splits, given=job.dataset.splits_given).items():
        print(f"  {name} is left out of {splits[name]}: {other} in {splits[other]} has the same content", flush=True)
        del job.clips[name]
