"""Transcode clips and embed them under one setting at the same time, in one pipeline of Ray Data.

    sources -> a task for as many clips as advance together: transcode, decode -> encoding actors

The tower begins with the first clips instead of waiting for the last. What comes of it lies in the store as after both
stages, but that shards hold clips in the order of the manifest, and equal contents in two of them twice (readers take
each frame once). Batches are composed before anything is made, so that two runs compute bit-equal results. What could
not be decoded is left to `embed_clips`, which tries again and tells.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import ray

from dejavu.cluster.cluster import Pool
from dejavu.cluster.ray_map import SPREAD_TIMEOUT_S, Row, configure, report_progress, waves
from dejavu.embedding.batch import EmbedContext, decode_batch
from dejavu.embedding.reader import DecodeMade
from dejavu.observability.events import Work
from dejavu.observability.metrics import watched
from dejavu.stages.embed import WAVE, describe, encode_rows
from dejavu.stages.transcode import STAGE, Make
from dejavu.storage.setting import Setting


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
        together = self.embedding.config.streams
        tasks = [{"rows": json.dumps(some)} for some in waves(first, together)]
        results: Iterator[Row] = chain.from_iterable(self._wave(make, wave) for wave in waves(tasks, WAVE))
        results = watched(results, Work(stage=STAGE, total=len(rows), unit="clips", kept=kept))
        return report_progress(results, total=len(rows), stage=STAGE, unit="clips")

    def _wave(self, make: Make, tasks: Sequence[Row]) -> Iterator[Row]:
        manifest = ray.data.from_items(list(tasks), override_num_blocks=len(tasks))
        decode = DecodeMade(self.setting, self.embedding, frozenset(self.wanted), make, decode_batch)
        decoded = manifest.flat_map(decode, num_cpus=self.pool.cpus_per_reader)
        for row in encode_rows(decoded, self.pool.num_actors, self.embedding, self.pool):
            yield from json.loads(str(row["made"]))
