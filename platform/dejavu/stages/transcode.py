"""Transcode every clip once to the backbone's frame size and rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from dejavu.cluster.ray_map import Row, spread
from dejavu.observability.metrics import Step, failed, first_line, metered
from dejavu.records import Clip, Failure, Transcoded
from dejavu.storage.store import (
    StorageError,
    Store,
    atomic,
    file_sha256,
    identity,
    list_names,
    local_copy,
    retry_io,
    write_json,
)
from dejavu.storage.store_path import side_by_side, store_path
from dejavu.video.mp4 import Mp4Info, TranscodeConfig
from dejavu.video.transcode_apart import transcode_apart

STAGE = "transcode"
Encode = Callable[..., Mp4Info]
"""What `transcode` is: (source, target, frame_px=, config=, view=) -> what then lies in the target."""
Make = Callable[[Row], Row]
"""The kernel, which is `transcode_one`."""
Run = Callable[[Make, Sequence[Row], int], Iterator[Row]]
"""(kernel, rows, clips that need not be made) -> what the kernel returns for each row, in any order."""


@dataclass(frozen=True, slots=True)
class TranscodeResult:
    """What the stage leaves: the clips that can be used, and how many of them it had to make."""

    clips: dict[str, Transcoded]
    num_made: int
    failures: tuple[Failure, ...]


def source_key(clip: Clip, config: TranscodeConfig, frame_px: int, view: float = 1.0) -> str:
    """Name a source, and what is made of it, without reading it.

    `view` is the share of the centre square's side that frames show.

    Raises:
        OSError: The file is gone or cannot be looked at.
    """
    stat = store_path(clip.path).stat()
    named = {"clip": clip.clip_id, "bytes": stat.st_size, "ns": stat.st_mtime_ns}
    return identity({**named, **geometry(frame_px, view), "config": config.shaping()})


def geometry(frame_px: int, view: float) -> Row:
    """Return what rows and identities say of the frames; the whole centre square goes without saying."""
    return {"px": frame_px} if view == 1 else {"px": frame_px, "view": view}


def transcode_one(row: Row, encode: Encode = transcode_apart) -> Row:
    """Transcode one clip into the store; return its record as JSON, or the first line of what went wrong.

    Unless told otherwise FFmpeg runs in a process apart, so that a clip that crashes or hangs it fails as others do.

    Raises:
        StorageError: The disk is full, and was for more than a minute.
    """
    clip = Clip(**row["clip"])
    try:
        with metered(Step(stage=STAGE, step="transcode", clip_ids=[clip.clip_id])) as done:
            record = _transcode(clip, Store(store_path(row["store"])), TranscodeConfig(**row["config"]), row, encode)
            done.num_frames = record.num_frames
    except Exception as error:  # any clip may be broken in any way; the run goes on and the table says so
        if isinstance(error, StorageError) and error.full:
            raise
        return {"clip_id": clip.clip_id, "record": "", "error": first_line(error)}
    return {"clip_id": clip.clip_id, "record": json.dumps(asdict(record)), "error": ""}


def _transcode(clip: Clip, store: Store, config: TranscodeConfig, row: Row, encode: Encode) -> Transcoded:
    with local_copy(store_path(clip.path)) as source:
        frame_px, view = row["px"], row.get("view", 1.0)
        content_id = identity({"sha256": file_sha256(source), "config": config.shaping(), **geometry(frame_px, view)})
        target = store.mp4_path(content_id)

        def write() -> Mp4Info:
            with atomic(target) as unfinished:
                return encode(source, unfinished, frame_px=frame_px, config=config, view=view)

        info = retry_io(write)
    record = Transcoded(
        clip_id=clip.clip_id,
        content_id=content_id,
        path=f"{target.parent.name}/{target.name}",
        source=str(store_path(clip.path).absolute()),
        **asdict(info),
    )
    retry_io(lambda: write_json(store.transcoded_path(row["key"]), asdict(record)))
    return record


def one_task_each(make: Make, rows: Sequence[Row], kept: int) -> Iterator[Row]:
    """Run the kernel over the cluster's CPUs, and nothing behind it."""
    return spread(make, rows, stage=STAGE, kept=kept)


def one_after_the_other(make: Make, rows: Sequence[Row], _: int) -> Iterator[Row]:
    """Run the kernel in this process, without a cluster."""
    return map(make, rows)


def name_sources(
    clips: Sequence[Clip], config: TranscodeConfig, frame_px: int, view: float, stage: str = STAGE
) -> tuple[list[tuple[Clip, str]], list[Failure]]:
    """Name sources as `source_key` does; those that cannot be looked at are failures of the stage."""

    def name(clip: Clip) -> str | OSError:
        try:
            return source_key(clip, config, frame_px, view)
        except OSError as error:
            return error

    named: list[tuple[Clip, str]] = []
    failures = []
    for clip, key in zip(clips, side_by_side(store_path(clips[0].path), name, clips) if clips else (), strict=True):
        if isinstance(key, OSError):
            failures.append(Failure(clip_id=clip.clip_id, stage=stage, reason=f"{clip.path}: {key.strerror or key}"))
        else:
            named.append((clip, key))
    return named, failures


def transcode_clips(  # noqa: PLR0913  as few as say what is made of which clips, and how
    clips: Sequence[Clip],
    store: Store,
    config: TranscodeConfig,
    frame_px: int,
    *,
    view: float = 1.0,
    make: Make | None = transcode_one,
    run: Run = one_task_each,
) -> TranscodeResult:
    """Transcode what is not in the store yet. A clip that fails becomes a row in the failures table.

    A source is known again by its id, size and time of change; what is made is named by its content, so two equal
    files share one mp4. A record of more damage than `config` bears does not count. Where `make`, the kernel, is None,
    only what is there already is returned. `view` is the backbone's, as `Preprocess.view`. `run` may do more with the
    clips than make them (`transcode_embed.py`).
    """
    done: dict[str, Transcoded] = {}
    pending: list[Row] = []
    named, failures = name_sources(clips, config, frame_px, view)
    records, mp4s = store.transcoded(), list_names(store.mp4_dir, ".mp4")
    shared = {"store": str(store.root), **geometry(frame_px, view), "config": asdict(config)}

    for clip, key in named:
        if key in records:
            record = Transcoded(**json.loads(records[key]))
            if record.path.rpartition("/")[2] in mp4s and config.bears(record.damaged_share):
                done[clip.clip_id] = record
                continue
        if make:
            pending.append({"clip": asdict(clip), "key": key, **shared})
    store.forget_transcoded(row["key"] for row in pending if row["key"] in records)
    failed(failures if make else ())
    for result in run(make, pending, len(done)) if make else ():
        if result["error"]:
            failures.append(Failure(clip_id=result["clip_id"], stage=STAGE, reason=result["error"]))
            failed(failures[-1:])
        else:
            done[result["clip_id"]] = Transcoded(**json.loads(result["record"]))
    if make:
        store.write_failures(STAGE, failures)
    made = len(pending) - sum(row["clip"]["clip_id"] not in done for row in pending)
    return TranscodeResult(
        {clip.clip_id: done[clip.clip_id] for clip in clips if clip.clip_id in done}, made, tuple(failures)
    )
