"""Videos that annotations name by their file's stem, wherever below a folder they lie."""

from __future__ import annotations

from pathlib import PurePosixPath

from dejavu.datasets.video_folder import load_video_folder
from dejavu.storage.store_path import StorePath


def find_named_videos(root: StorePath) -> dict[str, str]:
    """Return each video's path by its name without the ending.

    Raises:
        FileNotFoundError: There is no such folder, or no video in it.
        ValueError: Two videos have one name, or a link leads out of the folder.
    """
    paths: dict[str, str] = {}
    for clip in load_video_folder(root).clips:
        stem = PurePosixPath(clip.path).stem
        if stem in paths:
            raise ValueError(
                f"videos: got {paths[stem]} and {clip.path}, expected one video named {stem!r}; remove one of them"
            )
        paths[stem] = clip.path
    return paths
