"""What a store holds under a setting: every frame of every clip, for search.

Shapes: R frames of all clips (rows), E embedding width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from dejavu.records import Transcoded, from_ranges
from dejavu.retrieval.frame_index import LikelyClips, shard_name
from dejavu.retrieval.search import Frames, Moment, MomentConfig, find_moments
from dejavu.storage.setting import Setting
from dejavu.storage.store import Store, read_parquet
from dejavu.storage.store_path import is_file, listed, side_by_side, storage_errors, store_path
from reuse_models.registry import config_from_dict

_CONTENT = re.compile(r'"content_id": "([^"]+)"')
COLUMNS = ("content_id", "clip_id", "frame", "seconds", "embedding")


@dataclass(frozen=True, slots=True)
class StoredSetting:
    """A setting that has embeddings in a store."""

    setting: Setting
    backbone: str
    """As it was given when the embeddings were made."""

    @property
    def name(self) -> str:
        """Method and setting, as a person asks for them."""
        return f"{self.setting.method} {self.setting.label}"


def list_settings(store: Store, named: Iterable[StoredSetting] = ()) -> list[StoredSetting]:
    """List the settings that have embeddings, latest first; a setting that was described wins over one that is named.

    Those `named` may be there without a description, as an older version left them.
    """
    found = {stored.setting.setting_id: stored for stored in named}
    for setting_id, note in store.described().items():
        setting = Setting(config_from_dict(note["config"]), setting_id, note["backbone_identity"])
        found[setting_id] = StoredSetting(setting, note["backbone"])
    changed = {
        name: max(side_by_side(store.root, lambda path: path.stat().st_mtime, shards))
        for name in found
        if (shards := listed(store.embeddings_dir(name), "*.parquet"))
    }
    return [found[name] for name in sorted(changed, key=lambda name: (-changed[name], name))]


def look_up(found: Sequence[Moment], store: Store) -> list[Moment]:
    """Say of each hit what the records of its video tell: whether its frame is concealed, and whether it is gone.

    A video of which an earlier version kept no place is taken to be there, and so is one where storage cannot tell.
    """
    contents = {hit.content_id for hit in found}
    records: dict[str, list[Transcoded]] = {}
    for text in store.transcoded().values():
        named = _CONTENT.search(text)
        if named and named[1] in contents:
            records.setdefault(named[1], []).append(Transcoded(**json.loads(text)))
    concealed = {name: from_ranges(some[0].concealed) for name, some in records.items()}
    gone = {name for name, some in records.items() if all(one.source and not _is_there(one.source) for one in some)}
    return [
        replace(hit, concealed=hit.frame in concealed.get(hit.content_id, ()), gone=hit.content_id in gone)
        for hit in found
    ]


def find_kept(frames: Frames, query_E: ArrayLike, config: MomentConfig, store: Store) -> list[Moment]:
    """Find as `find_moments` does, leaving out videos that are gone."""
    wanted = config.top
    while True:
        found = find_moments(frames, query_E, replace(config, top=wanted))
        kept = [hit for hit in look_up(found, store) if not hit.gone]
        if len(kept) >= config.top or len(found) < wanted:
            return kept[: config.top]
        wanted *= 2


def _is_there(source: str) -> bool:
    try:
        return is_file(store_path(source))
    except storage_errors():
        return True


def read_frames(store: Store, settings: Sequence[Setting], likely: LikelyClips | None = None) -> Frames:
    """Read every frame that is embedded under any of the settings; one that several have is the first one's.

    Equal contents are one clip, under the name with which they were embedded first.

    Settings are in the order in which they are preferred; of `likely` clips all frames are read, of all clips unless
    given.

    Raises:
        ValueError: There is no frame, or embeddings differ in width.
    """
    paths = [
        (rank, path)
        for rank, setting in enumerate(settings)
        for path in listed(store.embeddings_dir(setting.setting_id), "*.parquet")
        if likely is None or shard_name(path) in likely.shards
    ]
    chosen = None if likely is None else pc.field("content_id").isin(sorted(likely.content_ids))
    tables = side_by_side(store.root, lambda one: (one[0], read_parquet(one[1], COLUMNS, chosen)), paths)
    tables = [one for one in tables if len(one[1])]
    widths = sorted({table.schema.field("embedding").type.list_size for _, table in tables})
    if len(widths) != 1:
        raise ValueError(
            f"embeddings: got widths {widths} in {store.root}, expected one; run the embed stage, or name one setting"
        )
    table = pa.concat_tables([table for _, table in tables])
    rank_R = np.repeat([rank for rank, _ in tables], [len(table) for _, table in tables])
    content = table["content_id"].combine_chunks().dictionary_encode()
    code_R, frame_R = content.indices.to_numpy(), table["frame"].to_numpy()
    order_R = np.lexsort((rank_R, frame_R, code_R))
    new_R = np.ones(len(order_R), bool)
    new_R[1:] = (np.diff(code_R[order_R]) != 0) | (np.diff(frame_R[order_R]) != 0)
    rows_R = order_R[new_R]
    starts = np.flatnonzero(np.diff(code_R[rows_R], prepend=-1))
    embedding = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Frames(
        clip_ids=tuple(table["clip_id"].take(pa.array(rows_R[starts])).to_pylist()),
        content_ids=tuple(content.dictionary.take(pa.array(code_R[rows_R[starts]])).to_pylist()),
        starts=np.append(starts, len(rows_R)),
        frame_R=frame_R[rows_R],
        seconds_R=table["seconds"].to_numpy()[rows_R],
        embedding_RE=embedding.reshape(-1, widths[0])[rows_R],
    )
