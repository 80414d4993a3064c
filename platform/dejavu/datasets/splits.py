"""Which videos of a folder teach, which choose and which are reported: by folders, or by a hash of their groups.

Videos cut out of one film look alike: were some of them trained on and others tested, the test would flatter. They are
therefore one group, and a group is never divided.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal, get_args

from dejavu.records import Clip, Split

GroupBy = Literal["auto", "parent", "stem-prefix", "none"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES: Mapping[Split, float] = {"train": 0.5, "val": 0.2, "test": 0.3}
MIN_GROUPS = 10
"""With fewer, no split is worth its name: one video would choose for all others."""

_CUT = re.compile(r"(?:(?:[\s._-]+\(?\d+\)?)+|[\s._-]+[A-Za-z]{1,5}[\s._-]?\d+)$")
"""What a cutter puts behind a film's name: `_0012`, `-part3`, ` (2)`, `_000012_000022`, `_c01`."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """Clips with the split of each, and how it came about, in words."""

    clips: tuple[Clip, ...]
    how: str
    given: bool
    """Whether the folders said it, so that nothing may be moved."""


def split_folder(
    clips: Mapping[str, Clip], group_by: GroupBy = "auto", class_of: Mapping[str, str] | None = None
) -> Splitting:
    """Divide the videos of a folder.

    Args:
        clips: By the path within the folder.
        group_by: What belongs together where no folders say it: `parent` all of a folder, `stem-prefix` all whose
            names differ in a number at the end, `none` each video by itself, `auto` stem-prefix where that leaves
            enough groups, else none.
        class_of: By the same paths, classes of which each is divided by itself where val/ is cut out of train/.

    Returns:
        By the folders train/, val/ and test/ where there are any; else half of the clips train, a fifth validate and
        the rest test, group by group in the order of their hashes. Fewer than MIN_GROUPS groups all test.

    Raises:
        ValueError: Some videos lie in split folders and others do not, or nothing would be tested.
    """
    if any(_folder(name) in SPLITS for name in clips):
        return _by_folders(clips, group_by, class_of or {})
    names, how = _groups(clips, group_by)
    if len(names) < MIN_GROUPS:
        text = f"all {len(clips)} videos are test clips: {len(names)} {how}, and a split takes {MIN_GROUPS} or more"
        return Splitting(tuple(replace(clip, split="test") for clip in clips.values()), text, given=False)
    split_of = _cut_by_hash(names, SHARES)
    done = tuple(replace(clip, split=split_of[name]) for name, clip in clips.items())
    return Splitting(done, f"{_counts(done)}, by the hash of {len(names)} {how}", given=False)


def split_parts(parts: Mapping[str, Mapping[str, Clip]], group_by: GroupBy = "auto") -> Splitting:
    """Divide each part of some videos by itself, as classes are, so that each of three groups or more is in each split.

    A part maps clips' paths to clips.
    """
    split_of: dict[str, Split] = {}
    num_groups = 0
    for clips in parts.values():
        names, _ = _groups(clips, group_by)
        num_groups += len(names)
        split_of |= _cut_by_hash(names, SHARES)
    clips = {name: clip for some in parts.values() for name, clip in some.items()}
    done = tuple(replace(clip, split=split_of[name]) for name, clip in sorted(clips.items()))
    how = f"{_counts(done)}, {len(parts)} classes each by the hash of its groups, {num_groups} in all"
    return Splitting(done, how, given=False)


def add_training(tested: Sequence[Clip], teaching: Mapping[str, Clip], group_by: GroupBy = "auto") -> Splitting:
    """Let videos of another folder teach and choose, and all of the first one's be tested.

    `teaching` maps paths in the other folder to clips, whose ids get `train-on.` before them; clips of the first folder
    that lie in its train/ or val/ are left out.
    """
    names, how = _groups(teaching, group_by)
    shares: dict[Split, float] = {"train": SHARES["train"], "val": SHARES["val"]}
    split_of = _cut_by_hash(names, shares)
    own = [clip for clip in tested if clip.split == "test"]
    more = [replace(clip, clip_id=f"train-on.{clip.clip_id}", split=split_of[name]) for name, clip in teaching.items()]
    done = (*own, *more)
    return Splitting(done, f"{_counts(done)}; train and val by the hash of {len(names)} {how}", given=True)


def group_of(name: str, group_by: Literal["parent", "stem-prefix", "none"]) -> str:
    """Return the name of the group that a path within the folder belongs to."""
    path = PurePosixPath(name)
    if group_by == "none":
        return name
    if group_by == "parent":
        return str(path.parent)
    return str(path.parent / (_CUT.sub("", path.stem) or path.stem))


def twins(contents: Mapping[str, str], splits: Mapping[str, Split], *, given: bool) -> dict[str, str]:
    """Return clips that are, byte for byte, one of a later split: id -> the id of the other.

    Contents and splits are by clip id; `given` is whether a person divided them.

    Raises:
        ValueError: There are some, and the splits were given.
    """
    found: dict[str, str] = {}
    latest: dict[str, str] = {}
    for clip_id in sorted(contents, key=lambda one: SPLITS.index(splits[one]), reverse=True):
        other = latest.setdefault(contents[clip_id], clip_id)
        if splits[other] != splits[clip_id]:
            found[clip_id] = other
    if found and given:
        clip_id, other = next(iter(found.items()))
        raise ValueError(
            f"videos: got {clip_id!r} ({splits[clip_id]}) and {other!r} ({splits[other]}) with the same content, one "
            f"of {len(found)} such pairs, expected splits that share no video; remove one of each pair"
        )
    return found


def _groups(clips: Mapping[str, Clip], group_by: GroupBy) -> tuple[dict[str, list[str]], str]:
    """Return the names of each group, and what groups are, in words."""
    words = {"parent": "folders", "stem-prefix": "name prefixes", "none": "videos"}
    ways: list[Literal["parent", "stem-prefix", "none"]]
    ways = ["stem-prefix", "none"] if group_by == "auto" else [group_by]
    for way in ways:
        names: dict[str, list[str]] = defaultdict(list)
        for name in clips:
            names[group_of(name, way)].append(name)
        if len(names) >= MIN_GROUPS or way == ways[-1]:
            return names, words["none" if len(names) == len(clips) else way]
    raise AssertionError("the last way returns")


def _cut_by_hash(groups: Mapping[str, Sequence[str]], shares: Mapping[Split, float]) -> dict[str, Split]:
    """Deal groups out in the order of their hashes, so that each split gets its share of the clips, and one at least.

    A group goes to the split that lacks most of its share.
    """
    total, dealt = sum(map(len, groups.values())), Counter[Split]()
    whole = sum(shares.values())
    split_of: dict[str, Split] = {}
    for group in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        lacking = {split: total * share / whole - dealt[split] for split, share in shares.items()}
        split = max(shares, key=lambda one: lacking[one])
        dealt[split] += len(groups[group])
        split_of |= dict.fromkeys(groups[group], split)
    return split_of


def _by_folders(clips: Mapping[str, Clip], group_by: GroupBy, class_of: Mapping[str, str]) -> Splitting:
    outside = [name for name in clips if _folder(name) not in SPLITS]
    if outside:
        raise ValueError(
            f"videos: got {outside[0]!r} beside folders of splits, expected all videos in {', '.join(SPLITS)}; move it "
            "into one of them, or rename the folders"
        )
    split_of: dict[str, Split] = {name: split for name in clips for split in SPLITS if _folder(name) == split}
    found, how = set(split_of.values()), "by folders"
    if "test" not in found:
        raise ValueError("videos: got no video in test/, expected one or more; move some there")
    if found == {"train", "test"}:
        own: dict[str, dict[str, Clip]] = defaultdict(dict)
        for name, clip in clips.items():
            if split_of[name] == "train":
                own[class_of.get(name, "")][name] = clip
        num_groups, kinds = 0, set()
        for members in own.values():
            groups, what = _groups(members, group_by)
            split_of |= _cut_by_hash(groups, {"train": SHARES["train"], "val": SHARES["val"]})
            num_groups += len(groups)
            kinds.add(what)
        each = "" if len(own) == 1 else f"each of {len(own)} classes in "
        how = f"by folders, val out of {each}train/ by the hash of {num_groups} {' and '.join(sorted(kinds))}"
    done = tuple(replace(clip, split=split_of[name]) for name, clip in clips.items())
    return Splitting(done, f"{_counts(done)}, {how}", given=True)


def _folder(name: str) -> str:
    return PurePosixPath(name).parts[0] if "/" in name else ""


def _counts(clips: Sequence[Clip]) -> str:
    counts = Counter(clip.split for clip in clips)
    return ", ".join(f"{counts[split]} {split}" for split in SPLITS)
