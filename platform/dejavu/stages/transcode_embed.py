"""Transcode clips and embed them under one setting at the same time, in one pipeline of Ray Data.

    sources -> a task for as many clips as advance together: transcode, decode -> encoding actors

The tower begins with the first clips instead of waiting for the last, and what is held is bounded by the batches in
flight. Batches are composed before anything is made, so that two runs compute bit-equal results.

Of `EmbedAsMade` there lies in the store what is there after both stages, but that shards hold clips in the order of the
manifest, and equal contents in two of them twice (readers take each frame once). What could not be decoded is left to
`embed_clips`, which tries again and tells. Of `embed_videos` there are embeddings and records alone: the small H.264
films that the methods read, as the transcode stage makes them, lie in a scratch folder until they are decoded.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import ray

from dejavu.cluster.cluster import Pool
from dejavu.cluster.ray_map import SPREAD_TIMEOUT_S, Row, configure, report_progress, waves
from dejavu.embedding import batch
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.embedding.reader import DecodeMade
from dejavu.embedding.stored import complete_clips
from dejavu.observability.events import Work
from dejavu.observability.metrics import failed, watched
from dejavu.records import Clip, Failure, Transcoded
from dejavu.stages.embed import WAVE, describe, encode_rows
from dejavu.stages.transcode import STAGE, Make, geometry, name_sources, transcode_one
from dejavu.storage.setting import Setting
from dejavu.storage.store import Store, write_json
from dejavu.storage.store_path import store_path
from dejavu.video.mp4 import TranscodeConfig
from dejavu.video.transcode_apart import CLIP_LIMIT_S, declared_seconds, transcode_apart

PROGRESS_S = 10.0
SAMPLED = 32
"""Videos that are asked how long they are, for an estimate."""


def _encoded(
    tasks: Sequence[Row], read: Callable[[Row], Iterator[Row]], num_actors: int, embedding: EmbedContext, pool: Pool
) -> Iterator[Row]:
    """Yield a row for each batch that a task, of several clips, has read and an actor encoded."""
    manifest = ray.data.from_items(list(tasks), override_num_blocks=len(tasks))
    decoded = manifest.flat_map(read, num_cpus=pool.cpus_per_reader)
    return encode_rows(decoded, num_actors, embedding, pool)


@dataclass(frozen=True, slots=True)
class EmbedAsMade:
    """A `Run` of `transcode_clips` that embeds as well; for a store in which nothing is embedded under the setting."""

    setting: Setting
    embedding: EmbedContext
    pool: Pool
    wanted: Collection[str]
    """Ids of the clips that are embedded; the others are only transcoded."""

    def __call__(self, make: Make, rows: Sequence[Row], kept: int) -> Iterator[Row]:
        """Yield what the kernel returns for each row, once the first batch of its task is embedded."""
        configure(SPREAD_TIMEOUT_S, self.pool.store_bytes)
        describe(self.setting, self.embedding)
        first = sorted(rows, key=lambda row: row["clip"]["clip_id"] not in self.wanted)
        tasks = [{"rows": json.dumps(some)} for some in waves(first, self.embedding.config.streams)]
        read = DecodeMade(self.setting, self.embedding, frozenset(self.wanted), make)
        encoded = chain.from_iterable(
            _encoded(wave, read, self.pool.num_actors, self.embedding, self.pool) for wave in waves(tasks, WAVE)
        )
        results: Iterator[Row] = chain.from_iterable(json.loads(str(row["made"])) for row in encoded)
        results = watched(results, Work(stage=STAGE, total=len(rows), unit="clips", kept=kept))
        return report_progress(results, total=len(rows), stage=STAGE, unit="clips")


@dataclass(frozen=True, slots=True)
class Source:
    """How videos become frames."""

    transcode: TranscodeConfig
    frame_px: int
    view: float
    limit_s: float = CLIP_LIMIT_S


@dataclass(frozen=True, slots=True)
class VideosResult:
    """What is embedded, and what was done for it now."""

    clips: Mapping[str, Transcoded]
    """By clip id: all whose embeddings are complete."""
    num_new: int
    video_s: float
    """Seconds of video embedded now."""
    failures: tuple[Failure, ...]


def usual_batch_frames(clips: Sequence[Clip], fps: float, config: EmbedConfig) -> float | None:
    """Estimate the frames of a batch by what some of the videos declare; None where none says, as in object stores."""
    some = [path for clip in clips[:: -(-len(clips) // SAMPLED)] if isinstance(path := store_path(clip.path), Path)]
    frames = [min(config.segment_frames, fps * seconds) for path in some if (seconds := declared_seconds(path))]
    return config.streams * sum(frames) / len(frames) if frames else None


def embed_videos(
    clips: Sequence[Clip], setting: Setting, embedding: EmbedContext, source: Source, pool: Pool
) -> VideosResult:
    """Embed what the store lacks under this setting."""
    named, failures = name_sources(clips, source.transcode, source.frame_px, source.view, batch.STAGE)
    keys = {clip.clip_id: key for clip, key in named}
    whole = _complete(keys, setting, embedding)
    pending = [{"clip": asdict(clip), "key": key} for clip, key in named if clip.clip_id not in whole]
    video_s, started = 0.0, time.monotonic()
    if pending:
        configure(SPREAD_TIMEOUT_S, pool.store_bytes)  # nothing comes of a task until its videos are transcoded
        describe(setting, embedding)
        shown = started
        tasks = [{"rows": json.dumps(some)} for some in waves(pending, embedding.config.streams)]
        for row in _encoded(tasks, ReadVideos(setting, embedding, source), len(tasks), embedding, pool):
            failures += [Failure(**one) for one in json.loads(str(row["failures"]))]
            refused = [one for one in json.loads(str(row["made"])) if one["error"]]
            failures += [Failure(clip_id=one["clip_id"], stage=batch.STAGE, reason=one["error"]) for one in refused]
            video_s += int(str(row["num_frames"])) / source.transcode.fps
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                print(f"  embed: {video_s:.0f} s of video, {video_s / (shown - started):.1f} a second", flush=True)
    failed(failures)
    embedding.store.write_failures(batch.STAGE, failures, part="videos")
    complete = _complete(keys, setting, embedding)
    return VideosResult(complete, len(complete) - len(whole), video_s, tuple(failures))


def _complete(keys: Mapping[str, str], setting: Setting, embedding: EmbedContext) -> dict[str, Transcoded]:
    """Return the records of the clips whose embeddings are complete."""
    texts = embedding.store.transcoded()
    records = [Transcoded(**json.loads(texts[key])) for key in keys.values() if key in texts]
    complete = complete_clips(embedding, setting, records)
    return {record.clip_id: record for record in records if record.clip_id in complete}


class ReadVideos:
    """A task of Ray Data: a row of source videos becomes rows of decoded batches."""

    def __init__(self, setting: Setting, embedding: EmbedContext, source: Source) -> None:
        self.setting, self.embedding, self.source = setting, embedding, source

    def __call__(self, row: Row) -> Iterator[Row]:
        """Yield batch after batch; the films lie in a scratch folder until the last one is decoded."""
        with tempfile.TemporaryDirectory(prefix="dejavu-") as folder:
            scratch = replace(self.embedding, store=Store.open(Path(folder)))
            wanted = frozenset(one["clip"]["clip_id"] for one in json.loads(str(row["rows"])))
            yield from DecodeMade(self.setting, scratch, wanted, partial(self._film, scratch.store))(row)

    def _film(self, scratch: Store, row: Row) -> Row:
        """Transcode a video into a scratch folder, and keep its record; return what `transcode_one` does."""
        source = self.source
        whole = {**row, "store": str(scratch.root), **geometry(source.frame_px, source.view)}
        whole["config"] = asdict(source.transcode)
        made = transcode_one(whole, partial(transcode_apart, limit_s=source.limit_s))
        if made["record"]:
            write_json(self.embedding.store.transcoded_path(row["key"]), json.loads(made["record"]))
        return made
