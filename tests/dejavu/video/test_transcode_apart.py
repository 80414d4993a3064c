"""Videos that take the process with them, as the stage and the failures table see it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import dejavu.video.transcode_apart as stage
from dejavu.records import Clip
from dejavu.stages.transcode import Row, transcode_one
from dejavu.storage.store import Store
from dejavu.video.apart import Apart
from dejavu.video.mp4 import TranscodeConfig, VideoError, transcode
from dejavu.video.write import write_video

PX = 32
INJECTED = '''
import os, re, signal
from pathlib import Path
from dejavu.video.apart import serve
from dejavu.video import transcode_apart as stage

transcode = stage.transcode

def injected(source, target, **words):
    """Do what the source's name says, in the middle of writing."""
    if source.stem in ("crash", "hang", "killed"):
        target.with_name(f".{target.name}.0123abcd.tmp").write_bytes(b"half")
    if source.stem == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if source.stem == "killed" and not Path(f"{source}.once").exists():
        Path(f"{source}.once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if source.stem == "hang":
        re.fullmatch("(a+)+b", "a" * 64)
    if source.stem == "wrong":
        raise ZeroDivisionError("of FFmpeg's")
    return transcode(source, target, **words)

declared_seconds = stage.film.declared_seconds

def declared(path):
    """Do what the file's name says."""
    if path.stem == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.stem == "hang":
        re.fullmatch("(a+)+b", "a" * 64)
    if path.stem == "wrong":
        raise ZeroDivisionError("of FFmpeg's")
    return declared_seconds(path)

stage.transcode = injected
stage.film.declared_seconds = declared
serve(stage.answer)
'''


@pytest.fixture
def _injected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "injected.py").write_text(INJECTED)
    monkeypatch.syspath_prepend(tmp_path)
    process = Apart("injected")
    monkeypatch.setattr(stage, "_PROCESS", process)
    yield
    process.close()


def clip(folder: Path, name: str) -> Clip:
    path = folder / f"{name}.mp4"
    texture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    write_video(path, (np.roll(texture, index, axis=1) for index in range(6)), 6, 20)
    return Clip(clip_id=name, path=str(path), split="test")


def row(clip: Clip, store: Store) -> Row:
    config = asdict(TranscodeConfig())
    return {"clip": asdict(clip), "key": clip.clip_id, "store": str(store.root), "px": PX, "config": config}


def files(store: Store) -> list[str]:
    return sorted(path.suffix for path in store.root.rglob("*") if path.is_file())


@pytest.mark.usefixtures("_injected")
@pytest.mark.parametrize(
    ("name", "limit_s", "reason"),
    [
        ("crash", 60, "crash.mp4: got a crash of FFmpeg (SIGSEGV), expected an intact video; leave it out"),
        (
            "hang",
            2,
            "hang.mp4: got more than 2 s of transcoding, expected less; leave it out, or raise --clip-limit-s if it is "
            "just long",
        ),
        ("wrong", 60, "RuntimeError: ZeroDivisionError: of FFmpeg's"),
    ],
)
def test_a_clip_that_ends_its_process_is_a_row_and_the_next_goes_on(
    tmp_path: Path, name: str, limit_s: float, reason: str
) -> None:
    store = Store(tmp_path / "store")
    kernel = partial(transcode_one, encode=partial(stage.transcode_apart, limit_s=limit_s))
    assert kernel(row(clip(tmp_path, name), store))["error"] == reason
    assert files(store) == []
    assert transcode_one(row(clip(tmp_path, "good"), store))["error"] == ""
    assert files(store) == [".json", ".mp4"]


@pytest.mark.usefixtures("_injected")
def test_a_process_that_somebody_killed_is_not_the_clip_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dejavu.storage.store.WAITS_S", (0.0,))
    store = Store(tmp_path / "store")
    assert transcode_one(row(clip(tmp_path, "killed"), store))["error"] == ""


def test_apart_and_here_give_the_same(tmp_path: Path) -> None:
    source = Path(clip(tmp_path, "good").path)
    words = {"frame_px": PX, "config": TranscodeConfig(), "view": 0.75}
    here, apart = tmp_path / "here.mp4", tmp_path / "apart.mp4"
    assert transcode(source, here, **words) == stage.transcode_apart(source, apart, **words)  # type: ignore[arg-type]
    assert here.read_bytes() == apart.read_bytes()


def test_errors_keep_their_kind(tmp_path: Path) -> None:
    source = Path(clip(tmp_path, "good").path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as caught:
        stage.transcode_apart(source, tmp_path / "file" / "x.mp4", frame_px=PX, config=TranscodeConfig())
    assert caught.value.errno == errno.ENOTDIR
    with pytest.raises(VideoError, match=r"^gone.mp4: got no such file, expected a video file; "):
        stage.transcode_apart(tmp_path / "gone.mp4", tmp_path / "x.mp4", frame_px=PX, config=TranscodeConfig())


@pytest.mark.usefixtures("_injected")
def test_a_file_that_ends_the_process_that_looks_at_it_declares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LOOK_LIMIT_S", 2.0)
    names = ("crash", "good", "hang", "wrong", "good", "gone")
    paths = [Path(clip(tmp_path, name).path) for name in names[:-1]] + [tmp_path / "gone.mp4"]
    found = dict(zip(names, map(stage.declared_seconds, paths), strict=True))
    assert found == {"crash": None, "good": pytest.approx(1.0), "hang": None, "wrong": None, "gone": None}
