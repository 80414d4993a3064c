"""Whole files to damage: videos of several containers and codecs, annotations of each dataset, checkpoints."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.codec.codec import Codec, UnknownCodecError
from av.stream import Disposition
from av.video.frame import VideoFrame

Family = Literal["video", "store", "annotations", "checkpoint"]
FRAME_PX = 64
"""Of what is transcoded."""
NUM_FRAMES, FPS, WIDTH, HEIGHT = 24, 12, 80, 64


@dataclass(frozen=True, slots=True)
class Seed:
    """Files that are read together, and the one among them that is damaged."""

    family: Family
    name: str
    target: str
    files: dict[str, bytes]

    @property
    def is_text(self) -> bool:
        """Whether the damaged file is one that people write."""
        return self.target.endswith((".csv", ".json", ".jsonl"))


# fmt: off
CODECS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("mp4", "libx264", "yuv420p", {"preset": "veryfast", "g": "8"}),
    ("mkv", "libx264", "yuv420p", {"preset": "veryfast", "bf": "3", "g": "24"}),
    ("mov", "libx264", "yuv444p", {"preset": "veryfast"}),
    ("flv", "libx264", "yuv420p", {"preset": "veryfast"}),
    ("ts", "libx264", "yuv420p", {"preset": "veryfast", "bf": "2"}),
    ("h264", "libx264", "yuv420p", {"preset": "veryfast"}),
    ("webm", "libvpx-vp9", "yuv420p", {"deadline": "good", "cpu-used": "4"}),
    ("webm", "libvpx", "yuv420p", {"deadline": "good", "cpu-used": "4"}),
    ("mp4", "libsvtav1", "yuv420p", {"preset": "12"}),
    ("mkv", "libaom-av1", "yuv420p", {"cpu-used": "8", "usage": "realtime"}),
    ("ivf", "libvpx", "yuv420p", {"deadline": "good", "cpu-used": "4"}),
    ("avi", "mpeg4", "yuv420p", {"bf": "2"}),
    ("avi", "mjpeg", "yuvj420p", {}),
    ("mov", "mjpeg", "yuvj420p", {}),
    ("mov", "prores_ks", "yuv422p10le", {}),
    ("mov", "png", "rgb24", {}),
    ("ts", "mpeg2video", "yuv420p", {"bf": "2"}),
    ("mpg", "mpeg1video", "yuv420p", {}),
    ("mkv", "ffv1", "yuv420p", {}),
    ("flv", "flv", "yuv420p", {}),
    ("asf", "wmv2", "yuv420p", {}),
    ("nut", "huffyuv", "yuv422p", {}),
    ("y4m", "rawvideo", "yuv420p", {}),
)
# fmt: on


def video_seeds(real: Path | None = None) -> Iterator[Seed]:
    """Make a small video of each container and codec that this FFmpeg writes, sound alone, and take real ones along."""
    for container, codec, pix_fmt, options in CODECS:
        try:
            Codec(codec, "w")
        except UnknownCodecError:  # not in this build
            continue
        target = f"source.{container}"
        yield Seed("video", f"{container}-{codec}", target, {target: _video(container, codec, pix_fmt, options)})
    yield Seed("video", "m4a-aac", "source.m4a", {"source.m4a": _sound()})
    for name, content in odd_videos().items():
        target = f"source.{name.split('-')[0]}"
        yield Seed("video", name, target, {target: content})
    for path in sorted(real.iterdir()) if real else ():
        if path.is_file():
            yield Seed("video", f"real-{path.name}", path.name, {path.name: path.read_bytes()})


def _video(container: str, codec: str, pix_fmt: str, options: dict[str, str]) -> bytes:
    names = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "y4m": "yuv4mpegpipe"}
    memory = io.BytesIO()
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    # Without `bitexact` some containers write a random number, and the seeds would not be the same again.
    with av.open(memory, "w", format=names.get(container, container), options={"fflags": "+bitexact"}) as output:
        rate = 25 if codec in ("mpeg1video", "mpeg2video") else FPS  # these know but a few rates
        same = {"x264-params": "cpu-independent=1:threads=1"} if codec == "libx264" else {}
        stream = output.add_stream(codec, rate=rate, options=options | same)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.thread_count = 1
        for index in range(NUM_FRAMES):
            output.mux(stream.encode(VideoFrame.from_ndarray(picture(index), "rgb24")))
        output.mux(stream.encode(None))
    return memory.getvalue()


def odd_videos() -> dict[str, bytes]:
    """Make whole files as recorders, phones and editors leave them: name -> content, each of 24 pictures or twice that.

    Clocks that begin again, jump, begin before zero or late; several streams; packets without bytes; one duration for
    pictures and sound.
    """
    half_hour, second = 1800 * FPS, FPS
    ts, mpg = (("libx264", {"preset": "veryfast", "bf": "2"}), ("mpeg2video", {"bf": "2"}))
    film, preview = ("libx264", {"preset": "veryfast"}), ("mjpeg", {})
    return {
        "ts-joined": 2 * _streams("mpegts", [ts]),
        "mpg-joined": 2 * _streams("mpeg", [mpg]),
        "ts-jump": _streams("mpegts", [ts], jump=half_hour),
        "mkv-jump": _streams("matroska", [film], jump=half_hour),
        "nut-negative": _streams("nut", [film], first=-5 * second),
        "mp4-late": _streams("mp4", [film], first=second, sound="aac"),
        "mkv-late": _streams("matroska", [film], first=second, sound="aac"),
        "mp4-preview": _streams("mp4", [preview, film]),
        "mkv-preview": _streams("matroska", [film, preview, preview]),
        "nut-empty": _streams("nut", [preview], empty=range(6, 18)),
        "asf-sound": _streams("asf", [("wmv2", {})], sound="wmav2"),
    }


def _streams(
    container: str,
    films: list[tuple[str, dict[str, str]]],
    *,
    first: int = 0,
    jump: int = 0,
    empty: range = range(0),
    sound: str = "",
) -> bytes:
    """Write films side by side, the first timestamp `first`, half way a leap; and three seconds of sound."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=container, options={"fflags": "+bitexact"}) as output:
        streams = []
        for codec, options in films:
            rate = 25 if codec == "mpeg2video" else FPS
            same = {"x264-params": "cpu-independent=1:threads=1"} if codec == "libx264" else {}
            stream = output.add_stream(codec, rate=rate, options=options | same)
            stream.width, stream.height = (WIDTH, HEIGHT) if codec != "mjpeg" or len(films) == 1 else (32, 32)
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = Disposition.default if codec != "mjpeg" else Disposition(0)
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = Fraction(1, rate)
            streams.append(stream)
        heard = output.add_stream(sound, rate=44100, layout="mono") if sound else None
        packets = []
        for stream in streams:
            for index in range(NUM_FRAMES):
                frame = VideoFrame.from_ndarray(picture(index), "rgb24").reformat(stream.width, stream.height)
                frame.pts = first + index + (jump if 2 * index >= NUM_FRAMES else 0)
                frame.time_base = stream.codec_context.time_base
                packets += [_emptied(one) if index in empty else one for one in stream.encode(frame)]
            packets += stream.encode(None)
        if heard is not None:
            heard.bit_rate = 64_000
            for index in range(3 * 44100 // 1024):
                frame = AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 44100, 1024 * index, Fraction(1, 44100)
                packets += heard.encode(frame)
            packets += heard.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return memory.getvalue()


def _emptied(packet: av.Packet) -> av.Packet:
    empty = av.Packet(0)
    empty.pts, empty.dts, empty.duration, empty.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    empty.stream = packet.stream
    return empty


def picture(index: int) -> np.ndarray:
    """Draw frame `index` of every seed [H, W, 3]: a textured ground that slides, and a square that crosses it."""
    texture = (
        np.random.default_rng(0).integers(0, 200, (HEIGHT // 4, WIDTH // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    )
    drawn = np.roll(texture, 3 * index, axis=1)
    drawn[20:44, 2 * index : 2 * index + 24] = (240, 90, 20)
    return drawn


def _sound() -> bytes:
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        wave = np.sin(np.arange(1024) / 9).astype(np.float32)[None]
        for _ in range(20):
            frame = AudioFrame.from_ndarray(wave, "fltp", "mono")
            frame.sample_rate = 44100
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return memory.getvalue()


def store_seeds(folder: Path) -> Iterator[Seed]:
    """Make transcoded clips, as they lie in a store: 8 frames, and 300 with a second key frame."""
    from dejavu.video.mp4 import TranscodeConfig, transcode
    from dejavu.video.write import write_video

    for num_frames in (8, 300):
        source, target = folder / f"source{num_frames}.mp4", folder / f"clip{num_frames}.mp4"
        write_video(source, (picture(index % 28) for index in range(num_frames)), 2, 22)
        transcode(source, target, frame_px=FRAME_PX, config=TranscodeConfig())
        yield Seed("store", f"clip-{num_frames}", "clip.mp4", {"clip.mp4": target.read_bytes()})


# --------------------------------------------------------------------------------------------------------- annotations
def annotation_seeds() -> Iterator[Seed]:
    """Write small annotations of each dataset in their published form; each file in turn is the damaged one."""
    for dataset, files in (("next_qa", _next_qa()), ("msr_vtt", _msr_vtt()), ("how2qa", _how2qa())):
        contents = {name: text.encode() for name, text in files.items()}
        yield from (Seed("annotations", f"{dataset}-{name}", name, contents) for name in contents)


def _next_qa() -> dict[str, str]:
    files = {"map_vid_vidorID.json": json.dumps({name: f"0001/{name}" for name in ("111", "222", "333", "444")})}
    for split, names in (("val", ("111", "222")), ("test", ("333", "444"))):
        rows = ["video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"]
        rows += [
            f'{name},90,320,240,"what is it, then",b{qid},{qid},TN,a,b{qid},c,d,"e, f"'
            for name in names
            for qid in (0, 1)
        ]
        files[f"{split}.csv"] = "\n".join(rows) + "\n"
        located = {name: {"duration": 9.5, "location": {"0": [[0.5, 2]], "1": [[1, 2.5], [4, 5]]}} for name in names}
        files[f"gsub_{split}.json"] = json.dumps(located)
        files[f"frame2time_{split}.json"] = json.dumps({name: [0.5, 1, 2.5, 8.25] for name in names})
    return files


def _msr_vtt() -> dict[str, str]:
    splits = {"video0": "train", "video1": "validate", "video2": "test", "video3": "test"}
    info = {
        "videos": [
            {"video_id": name, "split": split, "id": index} for index, (name, split) in enumerate(splits.items())
        ],
        "sentences": [
            {"caption": f"{name} is shown {turn}", "video_id": name, "sen_id": 2 * index + turn}
            for index, name in enumerate(splits)
            for turn in (0, 1)
        ],
    }
    rows = ["key,vid_key,video_id,sentence", "ret0,msr2,video2,a person walks", 'ret1,msr3,video3,"a girl, twice"']
    return {"MSRVTT_data.json": json.dumps(info), "MSRVTT_JSFUSION_test.csv": "\n".join(rows) + "\n"}


def _how2qa() -> dict[str, str]:
    row = {"qid": "Q0", "vid_name": "aaa_0_60", "q": "what?", "a0": "w", "a1": "x", "a2": "y", "a3": "z"}
    rows = [row | {"answer_idx": 2, "ts": "7.2-18.0"}, row | {"qid": "Q1", "vid_name": "bbb_60_120", "answer_idx": 0}]
    test = 'ccc,[60.0:60.0],"his ""x""",b,c,who?,d\nccc,[43.5:60.0],b,c,d,where?,a\nddd,[0.0:4.5],b,c,d,when?,a\n'
    return {
        "how2qa_val_release.jsonl": "".join(json.dumps(each) + "\n" for each in rows),
        "how2QA_test_public_release.csv": test,
    }


# ---------------------------------------------------------------------------------------------------------- checkpoints
def checkpoint_seeds(folder: Path) -> Iterator[Seed]:
    """Save what each reader of weights reads: a Lightning checkpoint, add-on weights, a TempCLIP head, a backbone."""
    import torch

    from dejavu.backbones.locate import EMBEDDED, locate
    from dejavu.tasks.temp_clip.head import TempClip, TempClipShape
    from dejavu.tasks.temp_clip.weights import save_temp_clip
    from reuse_models.reusevit.addon import Addon, AddonShape, save_addon

    torch.manual_seed(0)
    addon = Addon(AddonShape(width=16, num_layers=3, decision_hidden=8, restoration_rank=4))
    state = {f"net._orig_mod.{name}": weight for name, weight in addon.state_dict().items()}
    state |= {"net.half": torch.arange(6).bfloat16().reshape(2, 3).t(), "orig_model.x": torch.zeros(3)}
    content = {"state_dict": state, "epoch": 4, "hyper_parameters": {"lr": 1e-3}, "callbacks": [addon.shape]}
    torch.save(content, folder / "published.ckpt")
    save_addon(addon, folder / "addon.safetensors")
    head = TempClip(TempClipShape(feature_width=6, sentence_width=5, width=16, ffn_width=8, num_heads=2, num_frames=8))
    save_temp_clip(head, {}, "embedded", folder / "head.safetensors")

    for names in (("published.ckpt",), ("addon.safetensors", "addon.json"), ("head.safetensors", "head.json")):
        files = {name: (folder / name).read_bytes() for name in names}
        yield from (Seed("checkpoint", name, name, files) for name in names)
    with zipfile.ZipFile(folder / "published.ckpt") as archive:  # its checksums would refuse most of the damage
        members = {name: archive.read(name) for name in archive.namelist()}
    yield Seed("checkpoint", "pickle", next(name for name in members if name.endswith("data.pkl")), members)
    files = {path.name: path.read_bytes() for path in locate(EMBEDDED).directory.iterdir() if path.is_file()}
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"):
        yield Seed("checkpoint", f"backbone-{name}", name, files)
    nested = json.dumps({"image_processor": json.loads(files["preprocessor_config.json"])}, indent=2).encode()
    yield Seed(
        "checkpoint",
        "backbone-processor_config.json",
        "processor_config.json",
        {**files, "processor_config.json": nested},
    )
