"""Transcode, and what clips tell before anything is made of them."""

from __future__ import annotations

from functools import partial

from dejavu.datasets.splits import twins
from dejavu.datasets.video_folder import passed_over
from dejavu.pipeline.job import Job
from dejavu.stages.transcode import transcode_clips, transcode_one
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
    )
    job.clips = transcoded.clips
    job.say(f"transcoded {transcoded.num_made} clips, {len(job.clips)} ready, {len(transcoded.failures)} failed")
    leave_twins_out(job)
    for line in say_odd(write_odd_csv(job.clips.values(), job.results)):
        print(f"  {line}", flush=True)
    job.check()


def leave_twins_out(job: Job) -> None:
    """Neither train on nor choose by a video that lies in the folder twice and is tested as well."""
    if not job.experiment.is_own:
        return
    splits = {clip.clip_id: clip.split for clip in job.dataset.clips}
    contents = {name: clip.content_id for name, clip in job.clips.items()}
    for name, other in twins(contents, splits, given=job.dataset.splits_given).items():
        print(f"  {name} is left out of {splits[name]}: {other} in {splits[other]} has the same content", flush=True)
        del job.clips[name]
