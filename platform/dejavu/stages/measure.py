"""Measure time and memory of each setting beside Original, in a pass of its own: never from stored results."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.cluster import cluster_hardware, hardware
from dejavu.records import Transcoded
from dejavu.setting import Setting
from dejavu.stages.batch import Batch, Embedding, cut, decode_batch
from dejavu.stages.encode import cut_chunk
from dejavu.store import identity, write_json
from dejavu.video.decode import DecodedFrames
from reuse_models.method import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureConfig:
    """How the timing pass runs."""

    num_clips: int = 4
    """Clips that advance in lockstep, the first by content id: the same sample for every setting."""
    num_frames: int = 32
    """Frames of each clip, at most."""
    num_rounds: int = 5
    """Times that each setting is run, alternating with Original; the median counts."""

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            ValueError: One of them is below 1.
        """
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"measure.{name}: got {value}, expected 1 or more; leave it at its default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Time and memory of one setting on one kind of hardware. Encoding alone: decoding is the same for all."""

    ms_per_frame: float
    speedup: float
    """Median over rounds of Original's time over this setting's, run one after the other."""
    peak_memory_mb: float
    """Growth of this process's peak resident memory while it encodes (GPU: peak allocated memory)."""
    hardware: str


def measure_settings(
    settings: Sequence[Setting],
    original: Setting,
    clips: Sequence[Transcoded],
    embedding: Embedding,
    config: MeasureConfig,
) -> tuple[dict[str, Timing], int]:
    """Time each setting that has not been timed on this hardware; return timings by setting id, and how many are new.

    The pass runs alone in one worker that holds a whole CPU or GPU, while no other stage runs.
    """
    chosen = sorted(clips, key=lambda clip: clip.content_id)[: config.num_clips]
    device = cluster_hardware()
    sample = identity({"clips": [clip.content_id for clip in chosen], "config": asdict(config), "hardware": device})
    path = embedding.store.root / "timings" / f"{sample}.json"
    known = _read(path)
    pending = [setting for setting in settings if setting.setting_id not in known]
    if pending:
        # Begun again elsewhere when its process or machine dies; the setting that it was timing too.
        actor: Any = ray.remote(
            num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU") else 0, max_restarts=3, max_task_retries=3
        )(_Stopwatch)
        stopwatch = actor.remote(embedding, [asdict(clip) for clip in chosen], asdict(config))
        for setting in pending:
            row = ray.get(stopwatch.time.remote(setting.to_row(), original.to_row()))
            known[setting.setting_id] = Timing(**row)
            write_json(path, {name: asdict(timing) for name, timing in known.items()})
        ray.kill(stopwatch)
    return {setting.setting_id: known[setting.setting_id] for setting in settings}, len(pending)


def _read(path: Path) -> dict[str, Timing]:
    if not path.is_file():
        return {}
    return {name: Timing(**row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}


class _Stopwatch:
    """The actor that runs settings in turn with Original."""

    def __init__(self, embedding: Embedding, clips: Sequence[Mapping[str, Any]], config: Mapping[str, int]) -> None:
        self.embedding, self.clips = embedding, [Transcoded(**clip) for clip in clips]
        self.num_frames, self.num_rounds = config["num_frames"], config["num_rounds"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.backbone: Backbone = load_backbone(embedding.backbone, device=self.device)
        self.frames: list[DecodedFrames] = []

    def _load(self) -> None:
        """Decode the sample, so that no decoding is timed. Not when the actor begins: Ray would hide what is wrong."""
        first = tuple(segment for segment in cut(self.clips, self.num_frames) if segment.start == 0)
        decoded = decode_batch(Batch(first, ()), self.embedding)
        if decoded.failures:
            raise ValueError(decoded.failures[0].reason)
        self.frames = list(decoded.frames)

    def time(self, setting: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
        """Alternate the two; the first round warms up and does not count."""
        if not self.frames:
            self._load()
        ours = Setting.from_row(dict(setting)).config.build(self.backbone.vit)
        dense = Setting.from_row(dict(original)).config.build(self.backbone.vit)
        num_frames = sum(len(frames.seconds_F) for frames in self.frames)
        seconds, ratios = [], []
        self._seconds(dense)
        before = self._reset_peak()
        self._seconds(ours)
        peak_mb = (self._peak_bytes() - before) / 2**20
        for _ in range(self.num_rounds):
            dense_s, ours_s = self._seconds(dense), self._seconds(ours)
            seconds.append(ours_s)
            ratios.append(dense_s / ours_s)
        timing = Timing(
            ms_per_frame=1e3 * statistics.median(seconds) / num_frames,
            speedup=statistics.median(ratios),
            peak_memory_mb=max(0.0, peak_mb),
            hardware=hardware(),
        )
        return asdict(timing)

    @torch.inference_mode()
    def _seconds(self, method: Method) -> float:
        """Time one pass over the sample, chunk by chunk as the pipeline runs it; pixels are made outside."""
        chunk_frames = self.embedding.config.chunk_frames
        longest = max(len(frames.seconds_F) for frames in self.frames)
        memory, total = method.start(len(self.frames)), 0.0
        for start in range(0, longest, chunk_frames):
            chunk = cut_chunk(self.backbone, self.frames, start, chunk_frames)
            self._wait()
            begin = time.perf_counter()
            memory = method.encode(chunk, memory).memory
            self._wait()
            total += time.perf_counter() - begin
        return total

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _reset_peak(self) -> float:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return float(torch.cuda.memory_allocated())
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5", encoding="ascii")  # Linux: VmHWM starts again from the present size
        return self._peak_bytes()

    def _peak_bytes(self) -> float:
        if self.device == "cuda":
            return float(torch.cuda.max_memory_allocated())
        status = Path("/proc/self/status")
        if status.exists():
            lines = status.read_text(encoding="ascii").splitlines()
            return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
