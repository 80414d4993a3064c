"""Embed every clip under several method settings with Ray Data: manifest, decode, encode in actors, Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from dejavu.cluster.cluster import Pool
from dejavu.cluster.ray_map import Row, configure, report_progress, waves
from dejavu.embedding.batch import STAGE, Batch, DecodedBatch, EmbedContext, decode_batch, divide_settings, plan
from dejavu.embedding.encode import encode_batch, load_backbone_for, to_table
from dejavu.embedding.reader import DecodeRow, step_on
from dejavu.observability.events import Work
from dejavu.observability.metrics import failed, metered, watched
from dejavu.records import Failure, Transcoded
from dejavu.report.reuse_stream import follow
from dejavu.storage.setting import Setting, with_local_weights
from dejavu.storage.store import atomic, identity, local_copy
from dejavu.storage.store_path import is_file
from dejavu.video.decode import DecodedFrames, decode
from reuse_models.method import Method
from reuse_models.registry import config_to_dict


class EncodeRow:
    """The actor: keeps the backbone and the methods, takes one decoded batch at a time."""

    compute = staticmethod(encode_batch)
    """What is done with decoded segments; another one tells what the stage itself costs."""

    def __init__(self, embedding: EmbedContext) -> None:
        """Load the backbone onto the GPU where there is one."""
        self.embedding, self.backbone = embedding, load_backbone_for(embedding)
        self.methods: dict[str, Method] = {}

    def __call__(self, rows: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
        # What comes out of the object store is read-only, which torch does not take: copied once, here.
        row = {name: np.array(column[0]) for name, column in rows.items()}
        batch = Batch.from_row(row)
        frames, start = [], 0
        for segment in batch.segments:
            stop = start + segment.num_frames
            frames.append(
                DecodedFrames(
                    rgb_FHWC=row["rgb"][start:stop],
                    codec_F4PP=row["codec"][start:stop],
                    seconds_F=row["seconds"][start:stop],
                    picture_types="",
                    codec_metadata=True,
                )
            )
            start = stop
        for setting in batch.settings:
            self.encode(setting, DecodedBatch(batch.segments, tuple(frames), ()))
        told = {name: [str(row[name])] for name in PASSED_ON if name in row}
        return {**told, "num_frames": [str(start)]}

    def encode(self, setting: Setting, decoded: DecodedBatch, stage: str = STAGE) -> None:
        """Write what a setting makes of a batch as one shard, whole or not at all; again if need be, to its place."""
        if not decoded.segments:
            return
        with metered(step_on("encode", decoded.segments, setting, stage)) as done:
            method, chunk_frames = self.method(setting), self.embedding.config.chunk_frames
            encoded = self.compute(method, self.backbone, decoded.frames, chunk_frames)
            table = to_table(decoded.segments, decoded.frames, encoded)
            units = [segment.unit_id for segment in decoded.segments]
            self.embedding.store.write_embeddings(setting.setting_id, table, units)
            done.num_frames = sum(segment.num_frames for segment in decoded.segments)

    def method(self, setting: Setting) -> Method:
        """Return the setting's method, which is built once."""
        if setting.setting_id not in self.methods:
            self.methods[setting.setting_id] = setting.config.build(self.backbone.vit)
        return self.methods[setting.setting_id]


PASSED_ON = ("failures", "clip_ids", "made")
WAVE = 10_000
"""Batches that Ray Data gets at once: more than of other items, since each wave's actors load the tower anew."""
BATCHES_PER_ACTOR = 4
"""At least, where there are as many settings: at the end, actors wait for the last batch."""
OBSERVED_FRAMES = 32
"""Of each clip whose reuse is observed, from its first on."""


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """What the stage did."""

    num_clips: int
    """Clips embedded now, under one setting or more; 0 where nothing was missing."""
    failures: tuple[Failure, ...]


def embed_clips(
    clips: Sequence[Transcoded], settings: Sequence[Setting], embedding: EmbedContext, pool: Pool, part: str
) -> EmbedResult:
    """Decode and encode every clip under every setting, skipping what the store holds, and show progress.

    `part` names this call in the failures table, such as the split: what failed in it before is replaced.
    """
    batches = divide_settings(plan(clips, settings, embedding), BATCHES_PER_ACTOR * pool.num_actors)
    if batches:
        configure(store_bytes=pool.store_bytes)
        for setting in settings:
            describe(setting, embedding)
    waiting = Counter(segment.clip_id for batch in batches for segment in batch.segments)
    touched = frozenset(waiting)

    def ended(row: Row) -> int:
        """Count the clips whose last piece this was."""
        waiting.subtract(pieces := json.loads(str(row["clip_ids"])))
        return sum(not waiting[clip_id] for clip_id in set(pieces))

    results = chain.from_iterable(
        encode_rows(decode_rows(wave, embedding, pool), len(wave), embedding, pool) for wave in waves(batches, WAVE)
    )
    work = Work(stage=STAGE, total=len(touched), unit="clips", kept=len(clips) - len(touched))
    failures: dict[Failure, None] = {}
    for row in report_progress(watched(results, work, ended), total=len(batches), stage=STAGE, unit="batches"):
        of_batch = [Failure(**failure) for failure in json.loads(str(row["failures"]))]
        new = [failure for failure in of_batch if failure not in failures]  # each setting's batch tells of it
        failed(new)
        failures |= dict.fromkeys(new)
    embedding.store.write_failures(STAGE, failures, part=part)
    return EmbedResult(len(touched - {failure.clip_id for failure in failures}), tuple(failures))


def decode_rows(batches: Sequence[Batch], embedding: EmbedContext, pool: Pool) -> ray.data.Dataset:
    """Return rows of decoded batches."""
    # One block per batch keeps the store's backpressure tight: a batch is the largest thing in flight.
    manifest = ray.data.from_items([batch.to_row() for batch in batches], override_num_blocks=len(batches))
    return manifest.map(DecodeRow(embedding, decode_batch), num_cpus=pool.cpus_per_reader)


def encode_rows(decoded: ray.data.Dataset, num_blocks: int, embedding: EmbedContext, pool: Pool) -> Iterator[Row]:
    """Put the encoding actors, as many as blocks at most, behind rows of decoded batches; yield what comes of each.

    What a row tells beside its batch, in columns of PASSED_ON, comes out again.
    """
    encoded = decoded.map_batches(
        EncodeRow,
        fn_constructor_args=(embedding,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(pool.num_actors, num_blocks),
            # Ray's own is two, so that none waits for its next batch. On a CPU, where a batch takes half a minute, the
            # second would wait in one actor while another has none; a GPU is done with it soon.
            max_tasks_in_flight_per_actor=None if pool.gpus_per_actor else 1,
        ),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or None,
    )
    return iter(encoded.iter_rows())


def describe(setting: Setting, embedding: EmbedContext) -> None:
    """Write what a setting's embeddings are made with beside them."""
    note = {
        "method": setting.method,
        "label": setting.label,
        "config": config_to_dict(setting.config),
        "backbone": embedding.backbone,
        "image_px": embedding.image_px,
        "backbone_identity": setting.backbone_identity,
        "embedding": embedding.config.shaping(),
    }
    embedding.store.describe(setting.setting_id, note)


def observe_reuse(
    settings: Sequence[Setting], clips: Sequence[Transcoded], embedding: EmbedContext
) -> dict[Setting, list[NDArray[np.bool_]]]:
    """Watch clips being encoded, since results hold rates alone: per setting, which tokens were reused in each clip.

    What was observed before is read. Runs in one worker that holds a CPU, and a GPU where there is one.

    Returns:
        [F, L - 1, N] of each clip's first F = OBSERVED_FRAMES frames, L layers and N tokens.
    """
    contents = [clip.content_id for clip in clips]
    folder = embedding.store.root / "reuse" / identity({"clips": contents, "frames": OBSERVED_FRAMES})
    paths = {setting: folder / f"{setting.setting_id}.npz" for setting in settings}
    pending = [setting for setting in settings if not is_file(paths[setting])]
    if pending:
        watch: Any = ray.remote(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU") else 0)(_watch)
        for setting, found in zip(pending, ray.get(watch.remote(pending, clips, embedding)), strict=True):
            with atomic(paths[setting]) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, *found)
    observed = {}
    for setting, path in paths.items():
        with local_copy(path) as here, np.load(here) as arrays:
            observed[setting] = [arrays[f"arr_{number}"] for number in range(len(clips))]
    return observed


def _watch(
    settings: Sequence[Setting], clips: Sequence[Transcoded], embedding: EmbedContext
) -> list[list[NDArray[np.bool_]]]:
    backbone, config = load_backbone_for(embedding), embedding.config
    found: list[list[NDArray[np.bool_]]] = []
    for setting in settings:
        method = with_local_weights(setting.config).build(backbone.vit)
        found.append([])
        for clip in clips:
            with local_copy(embedding.store.root / clip.path) as path:
                pieces = decode(
                    path,
                    count=OBSERVED_FRAMES,
                    motion_binning=config.motion_binning,
                    chunk_frames=config.chunk_frames,
                )
                found[-1].append(np.stack([one.reuse_LN for one in follow(method, backbone, pieces)]))
    return found
