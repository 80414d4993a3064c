from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

import pytest

from dejavu.datasets.video_folder import clip_id_of, clips_by_name, passed_over
from dejavu.storage.store_path import StorePath, store_path


def put(root: StorePath, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_videos_are_found_by_extension_in_all_folders(tmp_path: Path) -> None:
    put(tmp_path, "b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", "noextension", ".hidden.mp4", ".cache/d.mp4")
    clips = clips_by_name(tmp_path)
    assert list(clips) == ["a.MKV", "b.mp4", "deep/er/c.webm"]
    assert sorted(Path(clip.path).name for clip in clips.values()) == ["a.MKV", "b.mp4", "c.webm"]
    assert {clip.split for clip in clips.values()} == {"test"}


def test_any_name_becomes_a_safe_and_unique_id(tmp_path: Path) -> None:
    names = [
        "a b.mp4",
        "a_b.mp4",
        "a/b.mp4",
        "día.mp4",
        "dia.mp4",
        "日本.mp4",
        'it\'s "q".mp4',
        "-x.mp4",
        "b.mp4",
        "b.avi",
        "n\nl.mp4",
    ]
    put(tmp_path, *names)
    clips = clips_by_name(tmp_path).values()
    ids = {clip.clip_id for clip in clips}
    assert len(ids) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", clip_id) for clip_id in ids)
    assert {str(Path(clip.path).relative_to(tmp_path)) for clip in clips} == set(names)


def test_a_plain_name_stays_and_an_id_does_not_depend_on_other_files(tmp_path: Path) -> None:
    assert clip_id_of("bikes.mp4") == "bikes.mp4"
    put(tmp_path, "x/a b.mp4")
    (alone,) = clips_by_name(tmp_path).values()
    put(tmp_path, "a.mp4", "x/a_b.mp4")
    assert alone in clips_by_name(tmp_path).values()


def test_a_long_name_stays_usable_as_a_file_name() -> None:
    long = clip_id_of("x" * 250 + ".mp4")
    assert len(long) < 130
    assert long != clip_id_of("x" * 251 + ".mp4")


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "outside.mp4", "root/inside.mp4")
    (tmp_path / "root" / "link.mp4").symlink_to(tmp_path / "root" / "inside.mp4")
    assert len(clips_by_name(tmp_path / "root")) == 2
    (tmp_path / "root" / "escape.mp4").symlink_to(tmp_path / "outside.mp4")
    with pytest.raises(ValueError, match=r"escape.mp4, a link to .*outside.mp4, expected files inside"):
        clips_by_name(tmp_path / "root")


def test_a_link_to_itself_is_a_clip_that_fails_and_one_to_a_pipe_is_none(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.mp4").symlink_to("pipe")
    assert {Path(clip.path).name for clip in clips_by_name(tmp_path).values()} == {"a.mp4", "loop.mp4"}


def test_a_linked_folder_that_leaves_is_refused_and_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path, "other/a.mp4", "root/b.mp4")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    assert len(clips_by_name(tmp_path / "alias")) == 1
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="a link to"):
        clips_by_name(tmp_path / "root")


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no names outside UTF-8")
    with pytest.raises(ValueError, match="expected UTF-8"):
        clips_by_name(tmp_path)


def test_an_empty_or_absent_folder_is_one_clear_line(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"got no video in .*check --videos"):
        clips_by_name(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        clips_by_name(tmp_path / "nowhere")


def test_the_real_clips_are_found(shared_dir: Path) -> None:
    clips = clips_by_name(shared_dir / "data" / "videos").values()
    assert "world.mp4" in {clip.clip_id for clip in clips}


def test_a_folder_in_an_object_store_gives_the_same_clips(tmp_path: Path) -> None:
    away = store_path(f"memory://{uuid.uuid4().hex}/videos")
    for root in (tmp_path, away):
        put(root, "z.mp4", "b/a b.mp4", "b/deep/x.mkv", "b/z.mp4", "a/y.mp4", "notes.txt", ".hidden.mp4", ".c/d.mp4")
    here, there = clips_by_name(tmp_path).values(), clips_by_name(away).values()
    assert [clip.clip_id for clip in there] == [clip.clip_id for clip in here]
    assert all(store_path(clip.path).read_bytes() == b"x" for clip in there)


def test_an_empty_address_is_refused_in_one_line() -> None:
    with pytest.raises(FileNotFoundError, match="no folder, expected one with videos"):
        clips_by_name(store_path(f"memory://{uuid.uuid4().hex}/videos"))


def test_containers_of_camcorders_are_videos_and_what_is_none_is_counted(tmp_path: Path) -> None:
    names = ("a.m2t", "b.MOD", "c.qt", "d.m1v", "sub/e.mpe", "f.Trp")
    others = ("notes.txt", "sub/more.TXT", "cover.jpg", "README", ".hidden", ".git/config.txt")
    put(tmp_path, *names, *others)
    assert {Path(clip.path).relative_to(tmp_path).as_posix() for clip in clips_by_name(tmp_path).values()} == {*names}
    assert passed_over(tmp_path) == "4 (2 .txt, 1 .jpg, 1 without an ending)"
    away = store_path(f"memory://{uuid.uuid4().hex}")
    put(away, "a.mp4", "b.txt", "c/.d/e.txt")
    assert passed_over(away) == "1 (1 .txt)"
    put(tmp_path / "alone", "a.mp4")
    assert passed_over(tmp_path / "alone") == ""
