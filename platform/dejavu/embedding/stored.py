"""Read stored embeddings back, clip by clip.

Shapes: F frames of one clip, E embedding width, R stored rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dejavu.embedding.batch import EmbedContext, cut, fill
from dejavu.records import Transcoded, from_ranges
from dejavu.storage.setting import Setting
from dejavu.storage.store import identity, read_parquet
from dejavu.storage.store_path import StorePath, side_by_side

PART_FRAMES = 2**16
"""Frames of one setting in memory at once where settings are read beside Original: some 300 MB at ViT-L/14's width."""


@dataclass(frozen=True, slots=True)
class ClipEmbeddings:
    """All frames of one clip under one setting, in display order."""

    seconds_F: NDArray[np.float64]
    embeddings_FE: NDArray[np.float32]
    reuse_rate_F: NDArray[np.float32]
    flops_F: NDArray[np.float64]
    concealed_F: NDArray[np.bool_]
    """Whether a frame shows what was not recorded: a damaged picture, or one predicted from it."""


def read_embeddings(
    embedding: EmbedContext, setting: Setting, clips: Sequence[Transcoded]
) -> dict[str, ClipEmbeddings]:
    """Read the stored embeddings of the clips that are complete under a setting: clip id -> frames.

    Equal contents are stored once and handed to every clip that has them.
    """
    return _read(embedding, _complete(embedding, setting, clips), clips)


def read_beside(
    embedding: EmbedContext, settings: Sequence[Setting], original: Setting, clips: Sequence[Transcoded]
) -> Iterator[tuple[Setting, dict[str, ClipEmbeddings], dict[str, ClipEmbeddings]]]:
    """Read settings beside Original, part by part of the clips and in each part setting by setting.

    Yields a setting with a part of its clips, as `read_embeddings` gives them, and Original's clips of that part. A
    part has PART_FRAMES frames at most, but one clip at least, so that the memory that this takes does not grow with
    the number of clips.
    """
    complete = {setting: _complete(embedding, setting, clips) for setting in {original, *settings}}
    # In the order in which most shards hold them, so that few of those belong to two parts.
    in_order = sorted(clips, key=lambda clip: (clip.content_id, clip.clip_id))
    for part in fill(in_order, len(clips), PART_FRAMES):
        dense = _read(embedding, complete[original], part)
        for setting in settings:
            yield setting, dense if setting == original else _read(embedding, complete[setting], part), dense


def _read(
    embedding: EmbedContext, complete: Mapping[str, Iterable[StorePath]], clips: Sequence[Transcoded]
) -> dict[str, ClipEmbeddings]:
    concealed = {clip.content_id: from_ranges(clip.concealed) for clip in clips}
    wanted = concealed.keys() & complete.keys()
    shards = sorted({shard for content in wanted for shard in complete[content]}, key=str)

    def read(shard: StorePath) -> pa.Table:
        table = read_parquet(shard)
        return table.filter(pc.is_in(table["content_id"], pa.array(sorted(wanted))))

    tables = side_by_side(embedding.store.root, read, shards)
    by_content: dict[str, ClipEmbeddings] = {}
    if tables:
        table = pa.concat_tables(tables)
        width = table.schema.field("embedding").type.list_size
        content_R = np.asarray(table["content_id"].to_pylist())
        embedding_RE = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        frame_R, seconds_R = table["frame"].to_numpy(), table["seconds"].to_numpy()
        rate_R, flops_R = table["reuse_rate"].to_numpy(), table["flops"].to_numpy()
        order_R = np.lexsort((frame_R, content_R))
        names, starts = np.unique(content_R[order_R], return_index=True)
        for name, rows_F in zip(names, np.split(order_R, starts[1:]), strict=True):
            # Two shards may hold the same segment after a kill between runs of different batches: each frame once.
            _, first = np.unique(frame_R[rows_F], return_index=True)
            rows = rows_F[first]
            by_content[str(name)] = ClipEmbeddings(
                seconds_R[rows],
                embedding_RE[rows].astype(np.float32),
                rate_R[rows],
                flops_R[rows],
                np.isin(frame_R[rows], concealed[str(name)]),
            )
    return {clip.clip_id: by_content[clip.content_id] for clip in clips if clip.content_id in wanted}


def complete_clips(embedding: EmbedContext, setting: Setting, clips: Sequence[Transcoded]) -> set[str]:
    """Name the clips that `read_embeddings` would return, read from the shards' footers alone."""
    complete = _complete(embedding, setting, clips)
    return {clip.clip_id for clip in clips if clip.content_id in complete}


def _complete(
    embedding: EmbedContext, setting: Setting, clips: Sequence[Transcoded]
) -> dict[str, tuple[StorePath, ...]]:
    """Return the shards of each content that is there from beginning to end."""
    done = embedding.store.done(setting.setting_id)
    units: dict[str, list[str]] = defaultdict(list)
    for segment in cut(clips, embedding.config.segment_frames):
        units[segment.content_id].append(segment.unit_id)
    return {
        content: tuple(done[unit] for unit in ids)
        for content, ids in units.items()
        if all(unit in done for unit in ids)
    }


def clips_identity(clips: Iterable[Transcoded]) -> str:
    """Name a set of clips by content."""
    return identity({"clips": sorted((clip.clip_id, clip.content_id) for clip in clips)})
