"""How much moves in each clip, by what its encoder wrote: read once per content and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from dejavu.cluster.ray_map import Row, spread, waves
from dejavu.observability.metrics import failed, first_line
from dejavu.records import Failure, Transcoded
from dejavu.storage.store import Store, local_copy, write_json
from dejavu.storage.store_path import StorePath, is_file, store_path
from dejavu.video.decode import decode

STAGE = "motion"
MACROBLOCK_PX = 16
"""The codec grid gives vectors in macroblocks."""
CLIPS_PER_ROW = 16
"""Decoding a short clip takes less than handing it to a worker."""


def measure_motion(clips: Sequence[Transcoded], store: Store) -> dict[str, float]:
    """Return clip id -> mean length of its motion vectors in pixels a frame, over all macroblocks and frames.

    A macroblock without a vector counts as still. Clips without codec metadata are absent; one that cannot be read is
    a row in the failures table.
    """
    path = store.root / "motion.json"
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if is_file(path) else {}
    told = [clip for clip in clips if clip.codec_metadata]
    pending = list({clip.content_id: clip for clip in told if clip.content_id not in known}.values())
    named = [(clip.clip_id, clip.content_id, str(store.root / clip.path)) for clip in pending]
    rows: list[Row] = [{"clips": json.dumps(some)} for some in waves(named, CLIPS_PER_ROW)]
    failures = []
    for result in spread(_measure, rows, stage=STAGE, unit="groups of clips"):
        for clip_id, content_id, value, error in json.loads(str(result["measured"])):
            if error:
                failures.append(Failure(clip_id=clip_id, stage=STAGE, reason=error))
            else:
                known[content_id] = value
    store.write_failures(STAGE, failures)
    failed(failures)
    if pending:
        write_json(path, dict(sorted(known.items())))
    return {clip.clip_id: known[clip.content_id] for clip in told if clip.content_id in known}


def motion_px(path: StorePath) -> float:
    """Return the mean length of a clip's motion vectors in pixels a frame.

    Raises:
        VideoError: The file cannot be read.
        ValueError: It has no frame.
    """
    total, count = 0.0, 0
    with local_copy(path) as here:
        for piece in decode(here):
            lengths = np.hypot(piece.codec_F4PP[:, 1], piece.codec_F4PP[:, 2])
            total, count = total + float(lengths.sum(dtype=np.float64)), count + lengths.size
    if not count:
        raise ValueError(f"{path.name}: got no frame, expected one or more; remove it and run again")
    return MACROBLOCK_PX * total / count


def _measure(row: Row) -> Row:
    measured = []
    for clip_id, content_id, path in json.loads(str(row["clips"])):
        try:
            measured.append((clip_id, content_id, motion_px(store_path(path)), ""))
        except Exception as error:  # any file may be broken in any way; the run goes on and the table says so
            measured.append((clip_id, content_id, math.nan, first_line(error)))
    return {"measured": json.dumps(measured)}
