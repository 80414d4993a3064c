"""Any folder of videos: no annotations, so the score is fidelity to Original (splits: `splits.py`)."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath

from dejavu.records import Clip
from dejavu.storage.store_path import StorePath, is_folder, names_below

# fmt: off
EXTENSIONS = frozenset({
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "h264", "264", "h265", "265", "hevc", "ivf", "m2ts", "m2v",
    "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "nut", "ogm", "ogv", "rm", "rmvb", "ts",
    "vob", "webm", "wmv", "y4m",
    "m1v", "m2t", "mk3d", "mod", "mpe", "qt", "tod", "tp", "trp",
})
# fmt: on
"""Containers and raw streams that FFmpeg reads, in small letters; other files in the folder are not videos to us."""

_LONGEST_ID = 100
"""Characters: an id becomes a file name, and file systems allow 255 bytes with suffixes."""


def clips_by_name(root: StorePath) -> dict[str, Clip]:
    """Find all videos below a folder, by extension; hidden files and folders are left out.

    A link to a file that lies inside the folder is followed, a linked folder is not entered, and a link that leads out
    of it is refused.

    Returns:
        Clips by their paths within the folder and in that order, all of split `test`, named after their place in it: a
        clip keeps its id when other files come and go.

    Raises:
        FileNotFoundError: There is no such folder, or no video in it.
        ValueError: A link leads out of the folder, or a name is not text.
    """
    if not is_folder(root):
        raise FileNotFoundError(f"videos: got {root}, no folder, expected one with videos; check --videos")
    clips: dict[str, Clip] = {}
    named: dict[str, str] = {}
    for name in _names(root):
        clip_id = clip_id_of(name)
        if clip_id in named:
            raise ValueError(
                f"videos: got {name!r} and {named[clip_id]!r}, which both become {clip_id!r}, expected ids that "
                "differ; rename one of them"
            )
        named[clip_id] = name
        clips[name] = Clip(clip_id=clip_id, path=str(root / name), split="test")
    if not clips:
        raise FileNotFoundError(
            f"videos: got no video in {root}, expected files ending in .mp4, .mkv, .webm, .avi or another container "
            "that FFmpeg reads; check --videos"
        )
    return clips


def find_named_videos(root: StorePath) -> dict[str, str]:
    """Return each video's path by its file's name without the ending, by which annotations name it.

    Raises:
        FileNotFoundError: There is no such folder, or no video in it.
        ValueError: Two videos have one name, or a link leads out of the folder.
    """
    paths: dict[str, str] = {}
    for clip in clips_by_name(root).values():
        stem = PurePosixPath(clip.path).stem
        if stem in paths:
            raise ValueError(
                f"videos: got {paths[stem]} and {clip.path}, expected one video named {stem!r}; remove one of them"
            )
        paths[stem] = clip.path
    return paths


def clip_id_of(name: str) -> str:
    """Turn a path relative to the folder into a name of letters, digits, `.`, `_` and `-`.

    What the name cannot say (folders, spaces, quotes, other alphabets, great length) is said by 10 digits of a hash
    of the whole path, so that `a b.mp4` and `a_b.mp4` stay two clips.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).lstrip("._-")
    if plain == name and len(plain) <= _LONGEST_ID:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{plain[:_LONGEST_ID]}-{digest}"


def passed_over(root: StorePath) -> str:
    """Say how many files below a folder are no videos to us, by ending: `3 (2 .txt, 1 .jpg)`; nothing where none is."""
    if isinstance(root, Path):
        found = [PurePosixPath(folder, name).relative_to(root) for folder, _, names in os.walk(root) for name in names]
    else:
        found = [PurePosixPath(name) for name in names_below(root)]
    others = [path for path in found if not _is_hidden(path) and not is_video(path.name)]
    endings = Counter(path.suffix.lower() or "without an ending" for path in others)
    counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    return f"{len(others)} ({counts})" if others else ""


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_video(name: str) -> bool:
    """Tell by its ending whether a file is a video to us."""
    return PurePosixPath(name).suffix[1:].lower() in EXTENSIONS


def _names(root: StorePath) -> list[str]:
    """List the videos below a folder: of each folder its files first, then those of the folders in it."""
    if isinstance(root, Path):
        return [path.relative_to(root).as_posix() for path in _videos(root)]
    found = [PurePosixPath(name) for name in names_below(root)]
    shown = [path for path in found if not _is_hidden(path) and is_video(path.name)]
    return [
        str(path) for path in sorted(shown, key=lambda path: (*((1, part) for part in path.parts[:-1]), (0, path.name)))
    ]


def _videos(root: Path) -> list[Path]:
    home = root.resolve()
    found = []
    for folder, folders, files in os.walk(root, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        for name in folders:
            _check_inside(here / name, home)  # a linked folder is not entered, but one that leaves is worth a word
        for name in sorted(files):
            if name.startswith(".") or not is_video(name):
                continue
            _check_inside(here / name, home)
            # A link to nothing, or to itself, fails later, as a clip; one to a pipe is no video, as a pipe is none.
            if (here / name).is_file() or not (here / name).exists():
                found.append(here / name)
    return found


def _check_inside(path: Path, home: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"videos: got the name {str(path)!r}, expected UTF-8; rename the file") from error
    try:
        leads_out = path.is_symlink() and not path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # to itself
        return
    if leads_out:
        raise ValueError(
            f"videos: got {path}, a link to {path.resolve()}, expected files inside the folder; put a copy or a hard "
            "link in its place, or give the folder that it leads to"
        )


def _refuse_unreadable(error: OSError) -> None:
    raise error
