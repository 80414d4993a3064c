"""From source videos to embeddings in one pass: of a video nothing is kept but its embeddings and its record.

A reader takes as many videos as advance in lockstep, makes of each the small H.264 film that the methods read (frames
and codec grid, as the transcode stage does) in a scratch folder, decodes it, and hands batches to the encoders while it
goes on reading. So decoding and encoding run at the same time, and what is held is bounded by the batches in flight.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import ray

from dejavu.cluster.cluster import Pool
from dejavu.cluster.ray_map import SPREAD_TIMEOUT_S, Row, configure, waves
from dejavu.embedding.batch import STAGE, EmbedContext
from dejavu.embedding.reader import DecodeMade
from dejavu.embedding.stored import complete_clips
from dejavu.observability.metrics import failed
from dejavu.records import Clip, Failure, Transcoded
from dejavu.stages.embed import REAL, describe, encode_rows
from dejavu.stages.transcode import geometry, name_sources, transcode_one
from dejavu.storage.setting import Setting
from dejavu.storage.store import Store, write_json
from dejavu.video.mp4 import TranscodeConfig
from dejavu.video.transcode_apart import CLIP_LIMIT_S, transcode_apart

PROGRESS_S = 10.0


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


def embed_videos(
    clips: Sequence[Clip], setting: Setting, embedding: EmbedContext, source: Source, pool: Pool
) -> VideosResult:
    """Embed what the store lacks under this setting."""
    store = embedding.store
    named, failures = name_sources(clips, source.transcode, source.frame_px, source.view, STAGE)
    keys = {clip.clip_id: key for clip, key in named}
    whole = _complete(keys, setting, embedding)
    pending = [clip for clip, _ in named if clip.clip_id not in whole]
    video_s, started = 0.0, time.monotonic()
    if pending:
        configure(SPREAD_TIMEOUT_S, pool.store_bytes)  # nothing comes of a task until its videos are transcoded
        describe(setting, embedding)
        shown = started
        for row in _run(pending, keys, setting, embedding, source, pool):
            failures += [Failure(**one) for one in json.loads(str(row["failures"]))]
            refused = [one for one in json.loads(str(row["made"])) if one["error"]]
            failures += [Failure(clip_id=one["clip_id"], stage=STAGE, reason=one["error"]) for one in refused]
            video_s += int(str(row["num_frames"])) / source.transcode.fps
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                print(f"  embed: {video_s:.0f} s of video, {video_s / (shown - started):.1f} a second", flush=True)
    failed(failures)
    store.write_failures(STAGE, failures, part="videos")
    complete = _complete(keys, setting, embedding)
    return VideosResult(complete, len(complete) - len(whole), video_s, tuple(failures))


def _complete(keys: Mapping[str, str], setting: Setting, embedding: EmbedContext) -> dict[str, Transcoded]:
    """Return the records of the clips whose embeddings are complete."""
    texts = embedding.store.transcoded()
    records = [Transcoded(**json.loads(texts[key])) for key in keys.values() if key in texts]
    complete = complete_clips(embedding, setting, records)
    return {record.clip_id: record for record in records if record.clip_id in complete}


def _run(  # noqa: PLR0913, PLR0917  one call, in one place
    clips: Sequence[Clip],
    keys: Mapping[str, str],
    setting: Setting,
    embedding: EmbedContext,
    source: Source,
    pool: Pool,
) -> Iterator[Row]:
    together = embedding.config.streams
    rows = [
        {"rows": json.dumps([{"clip": asdict(clip), "key": keys[clip.clip_id]} for clip in some])}
        for some in waves(clips, together)
    ]
    manifest = ray.data.from_items(rows, override_num_blocks=len(rows))
    decoded = manifest.flat_map(ReadVideos(setting, embedding, source), num_cpus=pool.cpus_per_reader)
    return encode_rows(decoded, len(rows), embedding, pool)


class ReadVideos:
    """A task of Ray Data: a row of source videos becomes rows of decoded batches."""

    def __init__(self, setting: Setting, embedding: EmbedContext, source: Source) -> None:
        self.setting, self.embedding, self.source = setting, embedding, source

    def __call__(self, row: Row) -> Iterator[Row]:
        """Yield batch after batch; the films lie in a scratch folder until the last one is decoded."""
        with tempfile.TemporaryDirectory(prefix="dejavu-") as folder:
            scratch = replace(self.embedding, store=Store.open(Path(folder)))
            wanted = frozenset(one["clip"]["clip_id"] for one in json.loads(str(row["rows"])))
            make = partial(self._film, scratch.store)
            yield from DecodeMade(self.setting, scratch, wanted, make, REAL.decode)(row)

    def _film(self, scratch: Store, row: Row) -> Row:
        """Transcode a video into a scratch folder, and keep its record; return what `transcode_one` does."""
        source = self.source
        whole = {**row, "store": str(scratch.root), **geometry(source.frame_px, source.view)}
        whole["config"] = asdict(source.transcode)
        made = transcode_one(whole, partial(transcode_apart, limit_s=source.limit_s))
        if made["record"]:
            write_json(self.embedding.store.transcoded_path(row["key"]), json.loads(made["record"]))
        return made
