from __future__ import annotations

from pathlib import Path

import numpy as np

from dejavu.storage.store import file_sha256
from dejavu.video.plain import copy_remarked, decode_plain, write_moving_texture


def test_copies_are_the_same_pictures_in_another_content(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    write_moving_texture(source, 7, 64)
    for number in range(2):
        copy_remarked(source, tmp_path / f"{number}.mkv", f"copy {number}")
    assert file_sha256(tmp_path / "0.mkv") != file_sha256(tmp_path / "1.mkv")
    for number in range(2):
        frames = list(decode_plain(tmp_path / f"{number}.mkv"))
        np.testing.assert_array_equal(frames, list(decode_plain(source)))
        assert len(frames) == 7
