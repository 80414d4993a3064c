"""Videos in class folders, `[split/]class/video`, as Kinetics, UCF101 and torchvision lay them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from dejavu.datasets.splits import SPLITS, GroupBy, Splitting, split_folder, split_parts
from dejavu.datasets.video_folder import clips_by_name
from dejavu.records import Clip, Dataset, Question, Split
from dejavu.storage.store_path import StorePath, is_folder

ONE_OF_EACH = 3
"""Videos that a class needs where no folders say the splits: one to learn from, one to choose by, one to be asked."""


def load_class_folders(root: StorePath, group_by: GroupBy = "auto") -> tuple[Dataset, Splitting]:
    """Find the videos of each class; which class a video is of becomes a question, whose `kind` is the class.

    Args:
        root: `train/`, `val/` and `test/` with the folders of classes in each (without `val/`, it is cut out of
            `train/`), or the folders of classes alone: then half of each class trains, a fifth validates and the rest
            is tested. Folders within a class do not matter.
        group_by: What belongs together (`splits.py`).

    Returns:
        All clips with their classes, in the order of their paths, and how they were divided.

    Raises:
        FileNotFoundError: There is no such folder, or no video in it.
        ValueError: A video lies in no class, there is one class alone, a split is empty, a class is not in all splits
            or has too few videos to be.
    """
    clips = clips_by_name(root)
    laid_out = any(PurePosixPath(name).parts[0] in SPLITS for name in clips if "/" in name)
    class_of = {name: _class_of(name, laid_out) for name in clips}
    classes = tuple(sorted(set(class_of.values())))
    if len(classes) < 2:
        raise ValueError(f"classes: got {classes[0]!r} alone in {root}, expected two or more; add folders of classes")
    if laid_out:
        _check_folders(root, class_of)
        splitting = split_folder(clips, group_by, class_of)
    else:
        splitting = _divide(clips, class_of, group_by)
    kind_of = {clip.clip_id: class_of[name] for name, clip in clips.items()}
    questions = tuple(
        Question(
            question_id=f"{clip.clip_id}_class",
            clip_id=clip.clip_id,
            split=clip.split,
            kind=kind_of[clip.clip_id],
            answers=classes,
            correct=classes.index(kind_of[clip.clip_id]),
        )
        for clip in splitting.clips
    )
    dataset = Dataset(name="class_folders", clips=splitting.clips, questions=questions, splits_given=splitting.given)
    return dataset, splitting


def words_of_class(name: str) -> str:
    """Write a folder's name as words: `ApplyEyeMakeup` and `apply_eye-makeup` become `apply eye makeup`."""
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\s-]+", " ", name).lower().split())


def _class_of(name: str, laid_out: bool) -> str:
    parts = PurePosixPath(name).parts[laid_out:]
    if len(parts) < 2:
        raise ValueError(
            f"classes: got {name!r}, which lies in no class, expected {'split/' if laid_out else ''}class/video; move "
            "it into the folder of its class"
        )
    return parts[0]


def _check_folders(root: StorePath, class_of: Mapping[str, str]) -> None:
    """Refuse splits that a person laid out, and that do not hold the same classes."""
    found: dict[Split, set[str]] = {split: set() for split in SPLITS if split != "val" or is_folder(root / split)}
    for name, its_class in class_of.items():
        for split, classes in found.items():
            if PurePosixPath(name).parts[0] == split:
                classes.add(its_class)
    for split, classes in found.items():
        if not classes:
            raise ValueError(f"classes: got no video in {split}/, expected some of each class; move some there")
    for its_class in sorted(set().union(*found.values())):
        if lacking := [split for split, classes in found.items() if its_class not in classes]:
            there = next(split for split in found if split not in lacking)
            raise ValueError(
                f"classes: got {its_class!r} in {there}/ and not in {lacking[0]}/, expected the same classes in all "
                "splits; add videos of it there, or remove it"
            )


def _divide(clips: Mapping[str, Clip], class_of: Mapping[str, str], group_by: GroupBy) -> Splitting:
    parts: dict[str, dict[str, Clip]] = defaultdict(dict)
    for name, clip in clips.items():
        parts[class_of[name]][name] = clip
    for its_class, members in parts.items():
        if len(members) < ONE_OF_EACH:
            raise ValueError(
                f"classes: got {len(members)} of class {its_class!r}, expected {ONE_OF_EACH} videos or more, one for "
                "each of train, val and test; add some, or remove the class"
            )
    splitting = split_parts(parts, group_by)
    split_of = {clip.clip_id: clip.split for clip in splitting.clips}
    for its_class, members in parts.items():
        found = {split_of[clip.clip_id] for clip in members.values()}
        if lacking := [split for split in SPLITS if split not in found]:
            raise ValueError(
                f"classes: got no video of {its_class!r} for {lacking[0]}, expected one or more: its videos are too "
                "few groups; give --group-by none, or lay out train/, val/ and test/"
            )
    return splitting
