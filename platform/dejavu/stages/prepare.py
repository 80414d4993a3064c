"""Find or draw the clips and questions of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

from dejavu.cluster.ray_map import Row, spread
from dejavu.datasets.how2qa import load_how2qa
from dejavu.datasets.msr_vtt import load_msr_vtt
from dejavu.datasets.next_qa import load_next_qa
from dejavu.datasets.splits import GroupBy, Splitting, add_training, split_folder
from dejavu.datasets.synthetic import SyntheticConfig, VideoSpec, is_made, list_videos, make_one, write_annotations
from dejavu.datasets.video_folder import clips_by_name
from dejavu.records import Dataset, Split
from dejavu.storage.store_path import StorePath, side_by_side, store_path

DatasetName = Literal["synthetic", "next_qa", "msr_vtt", "how2qa", "video_folder", "class_folders"]
OWN_VIDEOS: tuple[DatasetName, ...] = ("video_folder", "class_folders")
"""Folders that a person divides, or a hash."""
ANNOTATED = {"next_qa": load_next_qa, "msr_vtt": load_msr_vtt, "how2qa": load_how2qa}
SCORED: tuple[Split, ...] = ("val", "test")


def load_videos(videos: StorePath, train_on: StorePath | None, group_by: GroupBy) -> Splitting:
    """Load a folder of videos without annotations, and say what each is for.

    Args:
        videos: The folder; by its train/, val/ and test/ where there are any, else by hash.
        train_on: A folder of others to train on and to choose by; all of `videos` is tested then.
        group_by: What must not be divided (`datasets/splits.py`).

    Raises:
        FileNotFoundError: A folder is missing or has no videos.
        ValueError: The folders do not make sense as splits.
    """
    splitting = split_folder(clips_by_name(videos), group_by)
    if train_on is None:
        return splitting
    tested = splitting.clips if splitting.given else [replace(clip, split="test") for clip in splitting.clips]
    return add_training(tested, clips_by_name(train_on), group_by)


def draw_world(root: StorePath, config: SyntheticConfig, splits: Sequence[Split] = SCORED) -> tuple[Dataset, int]:
    """Draw what is lacking of the synthetic world; return it, and how many videos were drawn now."""
    specs = list_videos(config)
    made = side_by_side(root, lambda spec: is_made(spec, root), specs)
    lacking = [spec for spec, there in zip(specs, made, strict=True) if not there]
    rows = [asdict(spec) for spec in lacking]
    kept = len(specs) - len(rows)
    drawn = list(spread(partial(_draw, root=str(root)), rows, stage="draw", unit="videos", kept=kept))
    write_annotations(root, config)
    dataset = load_next_qa(root / "videos", root / "annotations", splits=tuple(splits))
    return Dataset(name="synthetic", clips=dataset.clips, questions=dataset.questions), len(drawn)


def _draw(row: Row, root: str) -> Row:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    spec = VideoSpec(**values)
    return {"video_id": spec.video_id, "made": make_one(spec, store_path(root))}
