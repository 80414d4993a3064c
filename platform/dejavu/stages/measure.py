"""Measure time and memory of each setting beside Original, in a pass of its own: never from stored results.

Original runs in the precision in which it is fastest here, whatever the settings run in: nobody would embed densely in
another.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate, islice
from typing import Any

import ray
import torch
from torch.autograd.profiler_util import MEMORY_EVENT_NAME
from torch.profiler import ProfilerActivity, profile

from dejavu.backbones.load import Backbone
from dejavu.cluster.cluster import cluster_hardware, hardware
from dejavu.embedding.batch import PRECISIONS, EmbedContext, Precision, Segment, cut, decode_batch
from dejavu.embedding.encode import cut_chunk, load_backbone_for
from dejavu.embedding.precision import has_bfloat16
from dejavu.observability import events
from dejavu.observability.events import track_progress
from dejavu.observability.metrics import Step, metered
from dejavu.records import Transcoded
from dejavu.storage.setting import Setting, with_local_weights
from dejavu.storage.store import Store, identity, local_copy, write_json
from dejavu.storage.store_path import StorePath, is_file, side_by_side
from dejavu.video.decode import DecodedFrames, decode
from dejavu.video.plain import decode_plain
from reuse_models.flops import flops_per_frame
from reuse_models.method import Method, MethodConfig, Work

STAGE = "measure"
STDERR = 2
PASSES_PER_ROUND = 2
"""Over the sample, for each setting: its own and Original's."""
DENSE_ROUNDS = 3
"""Over the sample, once: Original in each precision that the hardware computes in; settings are compared with the
faster."""
PASSES_APART = 2
"""One to warm up, and one to watch memory."""
PASS_S = 10.0
"""Where Original takes longer over the sample, fewer frames of each clip are taken, then fewer clips, one at least."""
FEWEST_FRAMES = 16
"""Of a clip, if it has them. The first is computed densely, and would be much of what is timed."""
ROUNDS_S = 60.0
"""Where a setting's rounds take longer together, there are fewer, FEWEST_ROUNDS at least."""
FEWEST_ROUNDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureConfig:
    """How the timing pass runs."""

    num_clips: int | None = None
    """Number of clips that advance in lockstep: the same for every setting, spread over how much clips move. Fewer if
    Original takes more than ten seconds for 16 frames of each. If not given, as many as are embedded at once
    (`embed.streams`)."""
    num_frames: int = 32
    """Maximum number of frames of each clip; down to 16 if Original takes more than ten seconds."""
    num_rounds: int = 5
    """Number of times that each setting runs, alternating with Original; the median counts. Fewer, but at least two, if
    this takes more than a minute."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise ValueError(f"measure.{name}: got {value}, expected 1 or more; leave it at its default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Time and memory of one setting on one kind of hardware, medians over the rounds."""

    ms_per_frame: float
    """Of encoding alone: frames are decoded and made into pixels before."""
    speedup: float
    """Of encoding: Original's time in its fastest precision over this setting's, run one after the other."""
    dense: str
    """That precision."""
    decode_ms_per_frame: float
    """Of decoding the same frames to RGB on one core, in the same rounds: alike for all settings, but for noise."""
    codec_ms_per_frame: float
    """What it takes longer to read the codec grid in the same pass; the pipeline does so for all settings."""
    peak_memory_mb: float
    """Most that PyTorch's allocator had handed out at once while the sample was encoded: pixels of a chunk, add-on
    weights, a method's state, buffers and results. Not the tower's weights, decoded frames, and what libraries keep for
    themselves. Counted, not sampled, so that it comes out the same again."""
    gflops_per_frame: float
    """Executed on the timed frames: what a method computes depends on how much moves in them, and these are few."""
    hardware: str
    num_clips: int
    """In lockstep."""
    num_rounds: int


def measure_settings(
    settings: Sequence[Setting],
    original: Setting,
    clips: Sequence[Transcoded],
    embedding: EmbedContext,
    config: MeasureConfig,
) -> tuple[dict[str, Timing], int]:
    """Time each setting that has not been timed on this hardware; return timings by setting id, and how many are new.

    The pass runs alone in one worker that holds a whole CPU or GPU, while no other stage runs.
    """
    config = replace(config, num_clips=config.num_clips or embedding.config.streams)
    chosen = spread_over_motion(clips, config.num_clips or 1, embedding.store)
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
        stopwatch = actor.remote(embedding, chosen, config)
        work = events.Work(stage=STAGE, total=len(pending), unit="settings", kept=len(settings) - len(pending))
        for setting in track_progress(pending, work):
            known[setting.setting_id] = ray.get(stopwatch.time.remote(setting, original))
            write_json(path, {name: asdict(timing) for name, timing in known.items()})
        ray.kill(stopwatch)
    return {setting.setting_id: known[setting.setting_id] for setting in settings}, len(pending)


def spread_over_motion(clips: Sequence[Transcoded], count: int, store: Store) -> list[Transcoded]:
    """Return so many clips, evenly spread over bytes a frame, which at one quality grow with what moves.

    How long a method takes that computes what has changed depends on it: a few clips by chance may say 1.5x where all
    together say 2x.
    """
    sizes = side_by_side(store.root, lambda clip: (store.root / clip.path).stat().st_size / clip.num_frames, clips)
    size_of = {clip.content_id: size for clip, size in zip(clips, sizes, strict=True)}
    ordered = sorted(clips, key=lambda clip: (size_of[clip.content_id], clip.content_id))
    count = min(count, len(ordered))
    return [ordered[(2 * place + 1) * len(ordered) // (2 * count)] for place in range(count)]


def sample_within(limit_s: float, frame_s: float, num_clips: int, num_frames: int) -> tuple[int, int]:
    """Return how many clips, and frames of each, a pass takes within a limit: one clip at least.

    Frames go first, down to FEWEST_FRAMES: how many clips advance together decides how fast small towers reuse.
    """
    frames = min(num_frames, max(FEWEST_FRAMES, int(limit_s / (frame_s * num_clips))))
    return max(1, min(num_clips, int(limit_s / (frame_s * frames)))), frames


def rounds_within(limit_s: float, round_s: float, num_rounds: int) -> int:
    """Return how many rounds are run: as many as begin within a limit, but FEWEST_ROUNDS; no more than asked for."""
    return min(num_rounds, max(FEWEST_ROUNDS, math.ceil(limit_s / round_s)))


def _read(path: StorePath) -> dict[str, Timing]:
    """Return the timings in a file; those of another version, which say other things, are measured again."""
    if not is_file(path):
        return {}
    names = {field.name for field in fields(Timing)}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {name: Timing(**row) for name, row in rows.items() if row.keys() == names}


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds of one pass over the sample each, in the order in which they were run."""

    plain_decode: float
    dense: float
    decode: float
    """With the codec grid."""
    ours: float


class _Stopwatch:
    """The actor that runs settings in turn with Original."""

    def __init__(self, embedding: EmbedContext, clips: Sequence[Transcoded], config: MeasureConfig) -> None:
        self.embedding, self.clips = embedding, clips
        self.num_frames, self.num_rounds = config.num_frames, config.num_rounds
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.backbone: Backbone = load_backbone_for(embedding, self.device)
        self.frames: list[DecodedFrames] = []
        self.dense: tuple[Precision, Method] | None = None

    def _load(self) -> None:
        """Decode the sample, so that no decoding is timed. Not when the actor begins: Ray would hide what is wrong."""
        decoded = decode_batch(self._sample(), self.embedding)
        if decoded.failures:
            raise ValueError(decoded.failures[0].reason)
        self.frames = list(decoded.frames)

    def _shorten(self, original: MethodConfig) -> None:
        """Leave out frames and clips where the tower is slow: what one clip takes says how many there can be."""
        every, self.frames = self.frames, self.frames[:1]
        dense = original.build(self.backbone.vit)
        self._encode_s(dense)
        frame_s = self._encode_s(dense) / len(self.frames[0].seconds_F)
        num_clips, self.num_frames = sample_within(PASS_S, frame_s, len(every), self.num_frames)
        self.frames = [_first(one, self.num_frames) for one in every[:num_clips]]

    def _sample(self) -> list[Segment]:
        return [segment for segment in cut(self.clips, self.num_frames) if segment.start == 0]

    def time(self, setting: Setting, original: Setting) -> Timing:
        """Alternate the two, each after a way of decoding; a first run of each warms up and does not count."""
        if not self.frames:
            self._load()
            self._shorten(original.config)
        with metered(Step(stage=STAGE, step="time", method=setting.method, setting_id=setting.setting_id)) as done:
            passes = PASSES_APART
            if self.dense is None:
                passes += len(self._precisions()) * (1 + DENSE_ROUNDS)
            timing = self._time(with_local_weights(setting.config), original.config)
            passes += PASSES_PER_ROUND * timing.num_rounds
            done.num_frames = passes * sum(len(frames.seconds_F) for frames in self.frames)
        return timing

    def _time(self, config: MethodConfig, original: MethodConfig) -> Timing:
        ours = config.build(self.backbone.vit)
        if self.dense is None:
            self.dense = self._fastest(original)
        precision, dense = self.dense
        gflops_per_frame = self._gflops_per_frame(ours)
        rounds: list[_Round] = []
        begin = time.perf_counter()
        while True:
            rounds.append(
                _Round(
                    self._decode_s(with_codec=False),
                    self._encode_s(dense),
                    self._decode_s(with_codec=True),
                    self._encode_s(ours),
                )
            )
            if len(rounds) >= rounds_within(ROUNDS_S, (time.perf_counter() - begin) / len(rounds), self.num_rounds):
                break
        to_ms = 1e3 / sum(len(frames.seconds_F) for frames in self.frames)
        return Timing(
            ms_per_frame=to_ms * statistics.median(one.ours for one in rounds),
            speedup=statistics.median(one.dense / one.ours for one in rounds),
            dense=precision,
            decode_ms_per_frame=to_ms * statistics.median(one.plain_decode for one in rounds),
            codec_ms_per_frame=to_ms * statistics.median(one.decode - one.plain_decode for one in rounds),
            peak_memory_mb=self._peak_bytes(config) / 2**20,
            gflops_per_frame=gflops_per_frame,
            hardware=hardware(),
            num_clips=len(self.frames),
            num_rounds=len(rounds),
        )

    def _fastest(self, original: MethodConfig) -> tuple[Precision, Method]:
        """Build Original in each precision and keep the faster one, by its fastest pass: noise makes passes longer."""
        towers: dict[Precision, Method] = {}
        for precision in self._precisions():
            config = replace(self.embedding.config, precision=precision)
            same = precision == self.embedding.config.precision
            backbone = self.backbone if same else load_backbone_for(replace(self.embedding, config=config), self.device)
            towers[precision] = original.build(backbone.vit)
            self._encode_s(towers[precision])
        spent: dict[Precision, list[float]] = {precision: [] for precision in towers}
        for _ in range(DENSE_ROUNDS):
            for precision, method in towers.items():
                spent[precision].append(self._encode_s(method))
        return min(towers.items(), key=lambda one: min(spent[one[0]]))

    def _precisions(self) -> tuple[Precision, ...]:
        """Return what Original is tried in: without arithmetic for it, bfloat16 takes several times as long."""
        return PRECISIONS if has_bfloat16(torch.device(self.device)) else ("float32",)

    def _decode_s(self, *, with_codec: bool) -> float:
        """Time reading the sample: RGB frames alone, or codec grids as well, as the pipeline does; not fetching it."""
        total, binning = 0.0, self.embedding.config.motion_binning
        for segment in self._sample()[: len(self.frames)]:
            with local_copy(self.embedding.store.root / segment.path) as path:
                begin = time.perf_counter()
                count = segment.num_frames
                frames: Iterable[object] = islice(decode_plain(path), count)
                if with_codec:
                    frames = decode(path, count=count, motion_binning=binning)
                deque(frames, maxlen=0)
                total += time.perf_counter() - begin
        return total

    @torch.inference_mode()
    def _passed(self, method: Method) -> Iterator[tuple[float, tuple[Work, ...]]]:
        """Encode the sample chunk by chunk as the pipeline does; yield each one's seconds, without pixels, and work."""
        chunk_frames = self.embedding.config.chunk_frames
        longest = max(len(frames.seconds_F) for frames in self.frames)
        memory = method.start(len(self.frames))
        for start in range(0, longest, chunk_frames):
            chunk = cut_chunk(self.backbone, self.frames, start, chunk_frames)
            self._wait()
            begin = time.perf_counter()
            encoded = method.encode(chunk, memory)
            self._wait()
            yield time.perf_counter() - begin, encoded.work
            memory = encoded.memory

    def _encode_s(self, method: Method) -> float:
        """Time one pass over the sample."""
        return sum(seconds for seconds, _ in self._passed(method))

    def _gflops_per_frame(self, method: Method) -> float:
        """Count what one pass executes, over the frames that it completes."""
        flops = [flops_per_frame(method.vit.shape, one) for _, works in self._passed(method) for one in works]
        return float(torch.cat(flops).mean()) / 1e9

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _peak_bytes(self, config: MethodConfig) -> int:
        """Encode once more, untimed, with a method built anew, and return the most that was allocated at once."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._encode_s(config.build(self.backbone.vit))
            return torch.cuda.max_memory_allocated() - before
        with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            self._encode_s(config.build(self.backbone.vit))
        return peak_bytes(watched)


def _first(decoded: DecodedFrames, count: int) -> DecodedFrames:
    return replace(
        decoded,
        rgb_FHWC=decoded.rgb_FHWC[:count],
        codec_F4PP=decoded.codec_F4PP[:count],
        seconds_F=decoded.seconds_F[:count],
        picture_types=decoded.picture_types[:count],
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to standard error: PyTorch's profiler tells of each start and stop, past Python's own."""
    kept, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)


def peak_bytes(watched: profile) -> int:
    """Return the most bytes that were allocated at once on the CPU, above what was there when the profile began."""
    recorded: Any = watched.profiler
    events = recorded.kineto_results.events()
    changes = sorted(
        (event for event in events if event.name() == MEMORY_EVENT_NAME), key=lambda event: event.start_ns()
    )
    return max(accumulate((int(change.nbytes()) for change in changes), initial=0))
