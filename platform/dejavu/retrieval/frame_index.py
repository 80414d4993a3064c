"""An index over the frames of a store that is too large to be read at each search: it names the clips worth reading.

A frame is indexed as its direction less `usual_share` of the mean direction of its clip. The product of that with a
query is the frame's cosine less a share of the clip's mean cosine, which is nearly the score that hits are ordered by;
the score itself, with the median instead of the mean, is taken of the named clips alone, which are read and searched
exactly. So a hit's score and span are those of exact search; what may be missed is a clip that is not named.

    <store>/nearest/<settings and share>/covers.json     what is indexed; names the file beside it, and is written last
    <store>/nearest/<settings and share>/<shards>.faiss  FAISS: inverted lists, a byte for each number of a vector

Shapes: R frames of one shard, E embedding width.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import isqrt
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from dejavu.storage.setting import Setting
from dejavu.storage.store import Store, atomic, identity, local_copy, read_parquet, write_json
from dejavu.storage.store_path import StorePath, is_file, listed

INDEX_FROM_FRAMES = 1_000_000
"""Exact search reads all frames at each call, and takes a second for so many."""
FRAMES_PER_LIST = 40
"""At least, so that k-means has something to average."""
TRAINED_ON_PER_LIST = 64
"""Frames that k-means sees, chosen shard by shard across the collection."""
PROBED_SHARE = 1 / 3
"""Of the lists that are looked into for a query. A text lies apart from all frames, so that the best of them are spread
over many lists: docs/search.md has what was found."""
LEAST_PROBED = 32
CLIPS_PER_MOMENT = 4
"""Clips named for each moment wanted: more than one, since their order is not quite that of the score."""
FRAMES_PER_MOMENT = 64
"""Frames looked at first for each moment wanted; the number grows fourfold until they are of clips enough."""
_FORMAT = "IVF,SQ8,inner product,1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Covers:
    """What an index holds."""

    file: str
    """Beside covers.json, named by the shards inside."""
    num_trained: int
    """Frames that were there when the lists were made; at twice as many they are made anew."""
    shards: Mapping[str, int]
    """Name -> its frames."""
    contents: Mapping[str, Sequence[str]]
    """Content id -> the shards that it lies in; a frame's label is the place of its content here."""


@dataclass(frozen=True, slots=True)
class LikelyClips:
    """Clips that an index names for a query."""

    content_ids: frozenset[str]
    shards: frozenset[str]
    """Names of those that their frames lie in, under any of the settings."""


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """An index that is open."""

    covers: Covers
    lists: Any
    """FAISS's; its lists stay on disk."""

    def likely(self, query_E: ArrayLike, top: int) -> LikelyClips:
        """Name the clips whose frames score best, CLIPS_PER_MOMENT for each of `top` moments.

        Raises:
            ValueError: The query is of another width, or has no direction.
        """
        query_1E = np.asarray(query_E, dtype=np.float32)[None]
        length = float(np.linalg.norm(query_1E))
        if query_1E.shape != (1, self.lists.d) or not 0 < length < np.inf:
            raise ValueError(
                f"query: got an embedding {list(query_1E.shape[1:])}, expected [{self.lists.d}] with a direction, as "
                "the frames have; embed text and frames with one backbone"
            )
        wanted, found = FRAMES_PER_MOMENT * top, list[int]()
        while True:
            labels = self.lists.search(query_1E / length, min(wanted, self.lists.ntotal))[1][0]
            found = list(dict.fromkeys(labels[labels >= 0].tolist()))  # -1: the lists looked into hold no more
            if len(found) >= CLIPS_PER_MOMENT * top or wanted >= self.lists.ntotal or (labels < 0).any():
                break
            wanted *= 4
        names = list(self.covers.contents)
        chosen = [names[label] for label in found[: CLIPS_PER_MOMENT * top]]
        return LikelyClips(
            frozenset(chosen), frozenset(shard for name in chosen for shard in self.covers.contents[name])
        )


def has_faiss() -> bool:
    """Whether FAISS, the extra `index`, is installed."""
    return importlib.util.find_spec("faiss") is not None


def shard_name(path: StorePath) -> str:
    """Name a shard within its store: setting id and file."""
    return f"{path.parent.name}/{path.name}"


def count_frames(store: Store, settings: Sequence[Setting]) -> int:
    """Count the frames that are embedded under any of the settings, from the shards' footers."""
    return sum(_num_rows(path) for path in _shards(store, settings))


def open_index(store: Store, settings: Sequence[Setting], usual_share: float) -> FrameIndex:
    """Open the index of these settings' frames: made where there is none, extended by shards that it lacks.

    It is made anew where a shard is gone, or the frames are more than twice those that its lists were made for. While
    it is made or extended it lies in memory, a byte for each number of each frame. It serves one `usual_share`, as the
    score has it.

    Raises:
        ValueError: There is no frame, or embeddings differ in width.
    """
    names = {"settings": sorted(setting.setting_id for setting in settings), "share": usual_share, "format": _FORMAT}
    folder = store.root / "nearest" / identity(names)
    covers = _read_covers(folder / "covers.json")
    shards = {shard_name(path): path for path in _shards(store, settings)}
    held = covers.shards if covers else {}
    lacking = {name: _num_rows(path) for name, path in shards.items() if name not in held}
    num_frames = sum(held.values()) + sum(lacking.values())
    if covers is None or set(held) - set(shards) or num_frames > 2 * covers.num_trained:
        rows = {name: held.get(name) or lacking[name] for name in shards}
        covers = _write(folder, _make_lists(rows, store, usual_share), None, rows, (store, usual_share))
    elif lacking:
        with local_copy(folder / covers.file) as file:
            lists = _faiss().read_index(str(file))
        covers = _write(folder, lists, covers, lacking, (store, usual_share))
    with local_copy(folder / covers.file) as file:  # one that is removed afterwards stays readable while it is open
        lists = _faiss().read_index(str(file), _faiss().IO_FLAG_MMAP)
    lists.nprobe = max(LEAST_PROBED, round(PROBED_SHARE * lists.nlist))
    return FrameIndex(covers, lists)


def _make_lists(rows: Mapping[str, int], store: Store, usual_share: float) -> Any:
    """Return empty lists whose centres are k-means of a sample, taken evenly from the shards."""
    num_frames = sum(rows.values())
    if not num_frames:
        raise ValueError(f"index: got no frame in {store.root}, expected one or more; run the embed stage")
    num_lists = max(1, min(isqrt(num_frames), num_frames // FRAMES_PER_LIST))
    every = max(1, num_frames // (TRAINED_ON_PER_LIST * num_lists))
    parts = [vectors_RE for vectors_RE, _ in _vectors(sorted(rows)[::every], store, usual_share)]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) != 1:
        raise ValueError(f"embeddings: got widths {widths} in {store.root}, expected one; name one setting")
    lists = _faiss().index_factory(widths[0], f"IVF{num_lists},SQ8", _faiss().METRIC_INNER_PRODUCT)
    lists.train(np.concatenate(parts))
    return lists


def _write(
    folder: StorePath, lists: Any, covers: Covers | None, rows: Mapping[str, int], source: tuple[Store, float]
) -> Covers:
    """Add shards to lists and write both, the new file before the note that names it; the old file goes last."""
    contents = {name: list(shards) for name, shards in covers.contents.items()} if covers else {}
    labels = {name: label for label, name in enumerate(contents)}
    for (vectors_RE, content_R), shard in zip(_vectors(rows, *source), rows, strict=True):
        for name in dict.fromkeys(content_R):
            labels.setdefault(name, len(labels))
            contents.setdefault(name, []).append(shard)
        lists.add_with_ids(vectors_RE, np.array([labels[name] for name in content_R], np.int64))
    held = {**(covers.shards if covers else {}), **rows}
    new = Covers(
        file=f"{identity({'shards': sorted(held)})}.faiss",
        num_trained=covers.num_trained if covers else sum(held.values()),
        shards=held,
        contents=contents,
    )
    with atomic(folder / new.file) as temporary:
        _faiss().write_index(lists, str(temporary))
    write_json(folder / "covers.json", asdict(new))
    for path in listed(folder, "*.faiss"):
        if path.name != new.file:
            path.unlink()
    return new


def _vectors(
    shards: Sequence[str] | Mapping[str, int], store: Store, usual_share: float
) -> Iterator[tuple[NDArray[np.float32], list[str]]]:
    """Yield [R, E] and R content ids of each shard; frames whose embedding has no direction are left out."""
    for shard in shards:
        table = read_parquet(store.root / "embeddings" / shard, ["content_id", "embedding"])
        width = table.schema.field("embedding").type.list_size
        flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        wide_RE = flat.reshape(-1, width).astype(np.float32)
        length_R = np.linalg.norm(wide_RE, axis=1)
        good_R = np.isfinite(length_R) & (length_R > 0)
        unit_RE = wide_RE[good_R] / length_R[good_R, None]
        names, code_R, num_C = np.unique(
            np.asarray(table["content_id"].to_pylist())[good_R], return_inverse=True, return_counts=True
        )
        mean_CE = np.zeros((len(names), width), np.float32)
        np.add.at(mean_CE, code_R, unit_RE)
        mean_CE /= num_C[:, None]
        yield unit_RE - np.float32(usual_share) * mean_CE[code_R], [str(names[code]) for code in code_R]


def _shards(store: Store, settings: Sequence[Setting]) -> list[StorePath]:
    return [path for setting in settings for path in listed(store.embeddings_dir(setting.setting_id), "*.parquet")]


def _num_rows(path: StorePath) -> int:
    with path.open("rb") as file:
        return int(pq.read_metadata(file).num_rows)


def _read_covers(path: StorePath) -> Covers | None:
    """Return the note of an index, or None where there is none or its file is gone."""
    if not is_file(path):
        return None
    covers = Covers(**json.loads(path.read_text(encoding="utf-8")))
    return covers if is_file(path.parent / covers.file) else None


@cache
def _faiss() -> Any:
    return importlib.import_module("faiss")
