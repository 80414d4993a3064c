"""What the product makes of one damaged file, in a process apart: `python -m tests.fuzz.trial` answers requests."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dejavu.records import Transcoded
from dejavu.video.apart import serve
from tests.fuzz.seeds import FRAME_PX

CLEAR = re.compile(r"[^\n]+: got [^\n]*, expected [^\n]*")
ENDED = re.compile(r"got a crash of FFmpeg|of transcoding, expected less")


class WrongError(AssertionError):
    """Something was kept, or said, that must not be."""


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Run one trial; return its outcome and one line about it.

    Outcomes: `done`, `refused` with a clear line, `contained` (the video ended the process that FFmpeg runs in, and the
    line says so), `violation`.
    """
    folder = Path(request["folder"])
    trials = {"video": _video, "store": _store, "annotations": _annotations, "checkpoint": _checkpoint}
    try:
        said = trials[request["family"]](folder, request)
    except Exception as error:
        if not _is_stated(error):
            return {"outcome": "violation", "line": f"{type(error).__name__}: {error}"}
        said = str(error)
    if said == "done":
        return {"outcome": "done", "line": ""}
    if not CLEAR.fullmatch(said):
        return {"outcome": "violation", "line": f"not a clear line: {said}"}
    return {"outcome": "contained" if ENDED.search(said) else "refused", "line": said}


def _is_stated(error: Exception) -> bool:
    """Tell whether it is what the readers say that they raise; a UnicodeDecodeError is a ValueError by accident."""
    from dejavu.backbones.locate import BackboneError
    from dejavu.video.source import VideoError

    return type(error) in (ValueError, FileNotFoundError, VideoError, BackboneError)


def _hold(fact: object, what: str) -> None:
    if not fact:
        raise WrongError(what)


# --------------------------------------------------------------------------------------------------------------- videos
def _video(folder: Path, request: dict[str, Any]) -> str:
    """Transcode as the stage does; then decode what it says that it made."""
    from dejavu.records import Clip, from_ranges
    from dejavu.stages.transcode import transcode_one
    from dejavu.storage.store import Store
    from dejavu.video.mp4 import TranscodeConfig
    from dejavu.video.transcode_apart import transcode_apart

    store = Store(folder / "store")
    clip = Clip(clip_id="x", path=str(folder / request["target"]), split="test")
    row = {
        "clip": asdict(clip),
        "key": "k",
        "store": str(store.root),
        "px": FRAME_PX,
        "config": asdict(TranscodeConfig()),
    }
    result = transcode_one(row, partial(transcode_apart, limit_s=request["clip_limit_s"]))
    kept = [path.name for path in store.root.rglob("*") if path.is_file()]
    if result["error"]:
        _hold(not kept, f"left behind: {kept}")
        return str(result["error"])
    record = Transcoded(**json.loads(result["record"]))
    _hold(len(kept) == 2, f"left beside the mp4 and its record: {kept}")
    _decode(store.root / record.path, record.num_frames, record)
    _hold(0 <= record.damaged_share <= TranscodeConfig().max_damaged_share, f"{record.damaged_share} damaged")
    marked = from_ranges(record.concealed)
    _hold(all(0 <= frame < record.num_frames for frame in marked), "frames marked that are not there")
    return "done"


def _store(folder: Path, request: dict[str, Any]) -> str:
    """Decode a damaged clip of the store as the embed stage does, from its start and from its end."""
    from dejavu.video.decode import decode_all
    from dejavu.video.mp4 import probe

    path = folder / request["target"]
    info = probe(path)
    _decode(path, info.num_frames, record=None)
    decode_all(path, start=info.num_frames - 1)
    return "done"


def _decode(path: Path, num_frames: int, record: Transcoded | None) -> None:
    from dejavu.embedding.batch import EmbedConfig, EmbedContext, Segment, decode_segment
    from dejavu.storage.store import Store

    embedding = EmbedContext("embedded", Store(path.parent), EmbedConfig())
    segment = Segment(clip_id="x", content_id="c", path=path.name, start=0, num_frames=num_frames)
    frames = decode_segment(segment, embedding)
    _hold(len(frames.rgb_FHWC) == len(frames.codec_F4PP) == len(frames.seconds_F) == num_frames, "counts differ")
    _hold(np.isfinite(frames.codec_F4PP).all(), "a codec grid with values that are no numbers")
    if record is not None:
        expected_s = record.start_s + np.arange(num_frames) / 2
        _hold(np.array_equal(frames.seconds_F, expected_s), "frames at other times than they should be")
        _hold(frames.codec_metadata is record.codec_metadata, "codec metadata other than the record says")


# ---------------------------------------------------------------------------------------------------------- annotations
def _annotations(folder: Path, request: dict[str, Any]) -> str:
    from dejavu.datasets.how2qa import load_how2qa
    from dejavu.datasets.msr_vtt import load_msr_vtt
    from dejavu.datasets.next_qa import load_frame_times, load_next_qa

    dataset = request["name"].split("-")[0]
    videos = folder / "videos"
    videos.mkdir()
    for name in ("111", "222", "333", "444", "video1", "video2", "video3", "aaa_0_60", "bbb", "ccc_60_120", "ddd_0_60"):
        (videos / f"{name}.mp4").touch()
    read: Callable[..., Any] = {"next_qa": load_next_qa, "msr_vtt": load_msr_vtt, "how2qa": load_how2qa}[dataset]
    loaded = read(videos, folder)
    numbers: list[float] = []
    if dataset == "next_qa":
        numbers += [s for split in ("val", "test") for times in load_frame_times(folder, split).values() for s in times]
    for question in loaded.questions:
        numbers += [question.duration_s, *(second for span in question.spans_s for second in span)]
        _hold(question.duration_s >= 0, f"a clip of {question.duration_s} s")
        _hold(0 <= question.correct < len(question.answers), "a right answer that is none of the answers")
        _text([question.question_id, question.text, *question.answers])
    for clip in loaded.clips:
        _text([clip.clip_id])
        _hold(clip.clip_id.isprintable(), f"an id that breaks lines: {clip.clip_id!r}")
        _hold(Path(clip.path).resolve().is_relative_to(videos.resolve()), f"a path outside: {clip.path}")
    _hold(np.isfinite(np.array(numbers)).all(), "times that are no numbers")
    names = [question.question_id for question in loaded.questions]
    _hold(len(names) == len(set(names)), "a question twice")
    return "done"


def _text(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise WrongError(f"a text that cannot be written: {text!r}") from error


# ---------------------------------------------------------------------------------------------------------- checkpoints
def _checkpoint(folder: Path, request: dict[str, Any]) -> str:
    import torch

    from dejavu.backbones.load import load_backbone
    from dejavu.tasks.temp_clip.weights import load_temp_clip
    from reuse_models.artifact.weights import read_checkpoint
    from reuse_models.reusevit.addon import load_addon

    torch.set_num_threads(1)  # small files; on a busy machine more threads wait for each other
    kind = request["name"].split(".")[0].split("-")[0]
    if kind == "pickle":
        with zipfile.ZipFile(folder / "published.ckpt", "w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix != ".ckpt":
                    archive.write(path, path.relative_to(folder))
    if kind in ("published", "pickle"):
        _finite(read_checkpoint(folder / "published.ckpt"))
    elif kind == "addon":
        _finite(load_addon(folder / "addon.safetensors").state_dict())
    elif kind == "head":
        _finite(load_temp_clip(folder / "head.safetensors").head.state_dict())
    else:
        backbone = load_backbone(str(folder))
        _finite(backbone.vit.state_dict())
        _hold(bool(backbone.embed_texts(["a red circle"]).isfinite().all()), "a phrase with values that are no numbers")
    return "done"


def _finite(state: Any) -> None:
    broken = [name for name, weight in state.items() if not bool(weight.isfinite().all())]
    _hold(not broken, f"weights with values that are no numbers: {broken[:2]}")


if __name__ == "__main__":
    serve(answer)
