"""Watch a few clips being encoded and keep which tokens were reused: results themselves hold rates alone.

F frames of one clip, L - 1 boundaries (here named L), N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.encode import load_backbone_for
from dejavu.records import Transcoded
from dejavu.report.reuse_stream import follow
from dejavu.storage.setting import Setting
from dejavu.storage.store import atomic, identity, local_copy
from dejavu.storage.store_path import is_file
from dejavu.video.decode import decode

NUM_FRAMES = 32
"""Of each clip, from its first on."""


def observe_reuse(
    settings: Sequence[Setting], clips: Sequence[Transcoded], embedding: EmbedContext
) -> dict[Setting, list[NDArray[np.bool_]]]:
    """Return, per setting, [F, L, N] of each clip's first frames; what was observed before is read.

    Runs in one worker that holds a CPU, and a GPU where there is one.
    """
    contents = [clip.content_id for clip in clips]
    folder = embedding.store.root / "reuse" / identity({"clips": contents, "frames": NUM_FRAMES})
    paths = {setting: folder / f"{setting.setting_id}.npz" for setting in settings}
    pending = [setting for setting in settings if not is_file(paths[setting])]
    if pending:
        watch: Any = ray.remote(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU") else 0)(_watch)
        rows = [setting.to_row() for setting in pending]
        found = ray.get(watch.remote(rows, [asdict(clip) for clip in clips], embedding))
        for setting in pending:
            with atomic(paths[setting]) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, *found[setting.setting_id])
    observed = {}
    for setting, path in paths.items():
        with local_copy(path) as here, np.load(here) as arrays:
            observed[setting] = [arrays[f"arr_{number}"] for number in range(len(clips))]
    return observed


def _watch(
    settings: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]], embedding: EmbedContext
) -> dict[str, list[NDArray[np.bool_]]]:
    backbone = load_backbone_for(embedding)
    found: dict[str, list[NDArray[np.bool_]]] = {}
    for row in settings:
        setting = Setting.from_row(dict(row))
        method = setting.config.build(backbone.vit)
        found[setting.setting_id] = []
        for clip in clips:
            with local_copy(embedding.store.root / str(clip["path"])) as path:
                pieces = decode(
                    path,
                    count=NUM_FRAMES,
                    motion_binning=embedding.config.motion_binning,
                    chunk_frames=embedding.config.chunk_frames,
                )
                found[setting.setting_id].append(np.stack([one.reuse_LN for one in follow(method, backbone, pieces)]))
    return found
