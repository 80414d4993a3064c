"""Transcode clips and embed them under one setting at the same time, in one pipeline of Ray Data.

    sources -> transcode, a task each -> decode, as many clips as advance together -> encoding actors

The tower begins with the first clips instead of waiting for the last. What comes of it lies in the store as after both
stages; what could not be decoded is left to `embed_clips`, which tries again and tells. Batches are composed in the
order of the clips, whichever is made first, so that two runs compute bit-equal results.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import ray

from dejavu.cluster.cluster import Pool
from dejavu.cluster.ray_map import SPREAD_TIMEOUT_S, Row, configure, report_progress, waves
from dejavu.embedding.batch import EmbedContext, decode_batch
from dejavu.embedding.reader import DecodeMade
from dejavu.observability.events import Work
from dejavu.observability.metrics import watched
from dejavu.stages.embed import describe, encode_rows
from dejavu.stages.transcode import STAGE, Make
from dejavu.storage.setting import Setting

APART: dict[str, Any] = {"retry_exceptions": False}
"""Ray's default, but said: Ray Data makes one of steps whose arguments are the same, so that all clips of a batch would
be transcoded by one task, or by the actor that encodes."""


@dataclass(frozen=True, slots=True)
class EmbedAsMade:
    """A `Run` of `transcode_clips` that embeds as well."""

    setting: Setting
    embedding: EmbedContext
    pool: Pool
    wanted: Collection[str]
    """Ids of the clips that are embedded; the others are only transcoded."""

    def __call__(self, make: Make, rows: Sequence[Row], kept: int) -> Iterator[Row]:
        """Yield what the kernel returns for each row, once that clip's first batch is embedded."""
        configure(SPREAD_TIMEOUT_S)
        describe(self.setting, self.embedding)
        first = sorted(rows, key=lambda row: row["clip"]["clip_id"] not in self.wanted)
        results: Iterator[Row] = chain.from_iterable(self._wave(make, wave) for wave in waves(first))
        results = watched(results, Work(stage=STAGE, total=len(rows), unit="clips", kept=kept))
        return report_progress(results, total=len(rows), stage=STAGE, unit="clips")

    def _wave(self, make: Make, rows: Sequence[Row]) -> Iterator[Row]:
        cpus, streams = self.pool.cpus_per_reader, self.embedding.config.streams
        manifest = ray.data.from_items(list(rows), override_num_blocks=len(rows))
        manifest.context.execution_options.preserve_order = True
        made = manifest.map(make, num_cpus=cpus)
        decode = DecodeMade(self.setting, self.embedding, frozenset(self.wanted), decode_batch)
        decoded = made.map_batches(decode, batch_size=streams, num_cpus=cpus, **APART)
        for row in encode_rows(decoded, -(-len(rows) // streams), self.embedding, self.pool):
            yield from json.loads(str(row["made"]))
