"""Measure what the platform costs without decoding and encoding: `python jobs/benchmarks/overhead.py [--json OUT]`.

Sends manifests of synthetic clips through transcode and embed with kernels that do nothing, on its own cluster, plans a
million rows against a store that has half of what they need, and scores stored frames. Memory is the driver's peak. One
file, since its kernels and manifests serve nothing else.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import tyro
from numpy.typing import NDArray

import submit
from apart import report_of, status_bytes
from dejavu.cluster import cluster
from dejavu.records import Clip, Question, Transcoded
from dejavu.storage.setting import Setting
from dejavu.embedding.batch import DecodedBatch, EmbedContext, EmbedConfig, Segment, cut, plan
from dejavu.stages import embed
from dejavu.stages.embed import EncodeRow, embed_clips
from dejavu.embedding.encode import EncodedSegment, to_table
from dejavu.embedding.stored import read_embeddings
from dejavu.stages.score import EvalSet, score_settings
from dejavu.stages.transcode import transcode_clips, transcode_one
from dejavu.storage.store import IDENTITIES_KEY, Store, identity, write_text
from dejavu.video.decode import DecodedFrames
from dejavu.video.mp4 import Mp4Info, TranscodeConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig

NUM_FRAMES = 24
FRAME_PX = 128
WIDTH = 64
SCORED_WIDTH = 768
"""Of ViT-L/14's embeddings."""
EQUAL = 10
"""Each tenth clip has the content of the one before it."""
LOGICAL_CPUS = 6
"""That the cluster of the load and throughput tables offers: kernels that do nothing need no real ones."""
MIB = 2**20


# --------------------------------------------------------------------------------------------- kernels that do nothing
def make_nothing(_source: Path, target: Path, *, frame_px: int, config: TranscodeConfig, view: float) -> Mp4Info:
    """Stand in for `transcode`."""
    write_text(target, "a video")
    return Mp4Info(
        num_frames=NUM_FRAMES,
        frame_px=frame_px,
        fps=config.fps,
        duration_s=NUM_FRAMES / config.fps,
        codec_metadata=True,
    )


def decode_nothing(segments: Sequence[Segment], _embedding: EmbedContext) -> DecodedBatch:
    """Stand in for `decode_batch`: frames of one pixel."""
    frames = tuple(
        DecodedFrames(
            rgb_FHWC=np.zeros((segment.num_frames, 1, 1, 3), np.uint8),
            codec_F4PP=np.zeros((segment.num_frames, 4, 1, 1), np.float32),
            seconds_F=np.arange(segment.start, segment.start + segment.num_frames) / 2,
            picture_types="P" * segment.num_frames,
            codec_metadata=True,
        )
        for segment in segments
    )
    return DecodedBatch(tuple(segments), frames, ())


def encoded_as(embeddings_FE: NDArray[np.float32]) -> EncodedSegment:
    """Return embeddings as if encoding them had computed nothing."""
    num_frames = len(embeddings_FE)
    return EncodedSegment(embeddings_FE, np.zeros(num_frames, np.float32), np.zeros(num_frames))


class Waiter(EncodeRow):
    """An actor that only waits, and writes shards of zeros where they belong."""

    wait_s = 0.0
    """For each clip."""

    def __init__(self, embedding: EmbedContext) -> None:
        self.embedding, self.backbone = embedding, cast("Any", None)

    def method(self, _setting: Setting) -> Any:
        """Build nothing."""

    def compute(
        self, _method: object, _backbone: object, frames: Sequence[DecodedFrames], _chunk_frames: int
    ) -> list[EncodedSegment]:
        """Wait; return nothing but zeros."""
        time.sleep(self.wait_s * len(frames))
        return [encoded_as(np.zeros((len(segment.seconds_F), WIDTH), np.float32)) for segment in frames]


# ------------------------------------------------------------------------------------------------------------ measuring
def report_load(num_clips: int) -> dict[str, Any]:
    """Send one manifest through both stages, again, and back; return what was seen, seconds of wall clock.

    `again_s` is both stages once more, with nothing to do; `driver_cpu_s` the driver's own processor time in both;
    `before_mib` the resident memory of a driver that has connected and done nothing.
    """
    _connect()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        clips = write_sources(Path(folder) / "sources", num_clips)
        embedding, setting = EmbedContext("none", store, EmbedConfig()), name_settings(1)[0]
        pool = cluster.actor_pool(2, 0)
        make = partial(transcode_one, encode=make_nothing)
        before_mib, cpu = status_bytes("VmHWM") / MIB, time.process_time()

        start = time.perf_counter()
        transcoded = list(transcode_clips(clips, store, TranscodeConfig(), FRAME_PX, make=make).clips.values())
        transcode_s = time.perf_counter() - start
        start = time.perf_counter()
        failures = embed_clips(transcoded, [setting], embedding, pool, "first").failures
        embed_s, cpu, peak = time.perf_counter() - start, time.process_time() - cpu, status_bytes("VmHWM") / MIB

        start = time.perf_counter()
        again = transcode_clips(clips, store, TranscodeConfig(), FRAME_PX)
        embedded = embed_clips(list(again.clips.values()), [setting], embedding, pool, "again")
        again_s = time.perf_counter() - start
        num_read = len(read_embeddings(embedding, setting, transcoded))
        num_contents = len(store.done(setting.setting_id))
    expect("clips transcoded and read back", (len(transcoded), num_read), (num_clips, num_clips))
    expect("failures and clips of the second run", (len(failures), again.num_made, embedded.num_clips), (0, 0, 0))
    return {
        "num_clips": num_clips,
        "num_contents": num_contents,
        "transcode_s": transcode_s,
        "embed_s": embed_s,
        "again_s": again_s,
        "driver_cpu_s": cpu,
        "peak_mib": peak,
        "before_mib": before_mib,
    }


def report_throughput(num_workers: int, num_clips: int, wait_ms: float) -> dict[str, Any]:
    """Embed clips with so many actors that wait, `wait_ms` for each clip; return what was seen.

    `share` is of what as many workers would reach that did nothing but wait.
    """
    _connect(wait_ms / 1e3)
    pool = cluster.actor_pool(num_workers, 0)
    with tempfile.TemporaryDirectory() as folder:
        embedding = EmbedContext("none", Store.open(Path(folder)), EmbedConfig())
        # Actors that load no tower are up in seconds; those are left out, and so are the clips that wait for them.
        num_first = num_workers * embedding.config.streams
        clips, settings = list_clips(num_first + num_clips), name_settings(1)
        embed_clips(clips[:num_first], settings, embedding, pool, "first")
        start = time.perf_counter()
        num_made = embed_clips(clips[num_first:], settings, embedding, pool, "others").num_clips
        seconds = time.perf_counter() - start
    return {
        "num_workers": num_workers,
        "num_clips": num_made,
        "wait_ms": wait_ms,
        "clips_per_s": num_made / seconds,
        "share": num_made * wait_ms / 1e3 / num_workers / seconds,
    }


def report_planning(folder: str, num_rows: int, index_s: float) -> dict[str, Any]:
    """Plan a manifest in a process that does nothing else; return what was seen.

    The store holds all of it under one setting, half under another, none under a third. `index_s` is the first look at
    the shards, which opens every footer and writes the index; `plan_cpu_s` what planning takes of the processor.
    """
    store = Store(Path(folder))
    clips = list_clips(num_rows)
    start, cpu = time.perf_counter(), time.process_time()
    batches = plan(clips, name_settings(3), EmbedContext("none", store, EmbedConfig()))
    plan_s, plan_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    num_contents = len({clip.content_id for clip in clips})
    lacking = sum(len(batch.segments) * len(batch.settings) for batch in batches)
    expect("segments times settings that are lacking", lacking, 2 * num_contents - num_contents // 2)
    return {
        "num_rows": num_rows,
        "num_shards": sum(1 for _ in store.root.glob("embeddings/*/*.parquet")),
        "num_batches": len(batches),
        "index_s": index_s,
        "plan_s": plan_s,
        "plan_cpu_s": plan_cpu_s,
        "peak_mib": status_bytes("VmHWM") / MIB,
    }


def fill_store(store: Store, num_rows: int) -> float:
    """Write shards of all rows under the first setting and of half under the second; return the seconds to index them.

    A shard is a real Parquet file with the footer that the store writes, but without frames and not synced to disk.
    """
    config = EmbedConfig()
    units = [segment.unit_id for segment in cut(list_clips(num_rows), config.segment_frames)]
    dense, half, _ = name_settings(3)
    empty = pa.table({"frame": pa.array([], pa.int32())})
    for setting, stop in ((dense, len(units)), (half, len(units) // 2)):
        target = store.embeddings_dir(setting.setting_id)
        target.mkdir(parents=True)
        for first in range(0, stop, config.streams):
            names = sorted(units[first : min(first + config.streams, stop)])
            shard = empty.replace_schema_metadata({IDENTITIES_KEY: json.dumps(names)})
            pq.write_table(shard, target / f"{identity({'shard': names})}.parquet")
    start = time.perf_counter()
    num_found = [len(store.done(setting.setting_id)) for setting in (dense, half)]
    index_s = time.perf_counter() - start
    expect("identities in the store", num_found, [len(units), len(units) // 2])
    return index_s


def report_scoring(folder: str, num_clips: int) -> dict[str, Any]:
    """Score Original and one setting in a process that does nothing else; return what was seen.

    A question with five answers is asked about each clip. `num_frames` are those of all clips under one setting;
    `before_mib` is with the manifest and the questions at hand.
    """
    embedding = EmbedContext("none", Store(Path(folder)), EmbedConfig())
    clips = tuple(list_clips(num_clips))
    answers_AE = np.random.default_rng(1).standard_normal((5, SCORED_WIDTH), np.float32)
    names, choices = [f"{clip.clip_id}_1" for clip in clips], tuple("abcde")
    questions = tuple(
        Question(
            question_id=name,
            clip_id=clip.clip_id,
            split="test",
            kind="CW",
            text="?",
            answers=choices,
            correct=0,
            spans_s=((0.0, 6.0),),
            duration_s=clip.duration_s,
        )
        for name, clip in zip(names, clips, strict=True)
    )
    eval_set = EvalSet(clips, questions, dict.fromkeys(names, answers_AE))
    before_mib, start, cpu = status_bytes("VmHWM") / MIB, time.perf_counter(), time.process_time()
    original, other = name_settings(2)
    scores = score_settings([original, other], original, eval_set, embedding)
    score_s, score_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    num_frames = sum(clip.num_frames for clip in clips)
    asked = [(score.num_frames, len(score.rows)) for score in scores]
    expect("frames and questions of each setting", asked, [(num_frames, num_clips)] * 2)
    return {
        "num_clips": num_clips,
        "num_frames": num_frames,
        "score_s": score_s,
        "score_cpu_s": score_cpu_s,
        "peak_mib": status_bytes("VmHWM") / MIB,
        "before_mib": before_mib,
    }


def fill_embeddings(store: Store, num_clips: int) -> None:
    """Write shards of random embeddings of all clips under two settings."""
    config, draws = EmbedConfig(), np.random.default_rng(0)
    for setting in name_settings(2):
        for batch in plan(list_clips(num_clips), [setting], EmbedContext("none", store, config)):
            encoded = [
                encoded_as(draws.standard_normal((segment.num_frames, SCORED_WIDTH), np.float32))
                for segment in batch.segments
            ]
            frames = decode_nothing(batch.segments, EmbedContext("none", store, config)).frames
            table = to_table(batch.segments, frames, encoded)
            store.write_embeddings(setting.setting_id, table, [segment.unit_id for segment in batch.segments])


# ------------------------------------------------------------------------------------------------------------ manifests
def write_sources(folder: Path, num_clips: int) -> list[Clip]:
    """Write sources of a few bytes, each tenth equal to the one before it."""
    folder.mkdir()
    for index in range(num_clips):
        (folder / f"{index}.mp4").write_text(str(content(index)), encoding="utf-8")
    return [Clip(clip_id=str(i), path=str(folder / f"{i}.mp4"), split="test") for i in range(num_clips)]


def list_clips(num_clips: int) -> list[Transcoded]:
    """Return a manifest as transcoding leaves it, without files."""
    clips = []
    for index in range(num_clips):
        # Scattered as hashes are.
        content_id = f"{content(index) * 0x9E3779B97F4A7C15F39CC060 % 2**96:024x}"
        clips.append(
            Transcoded(
                clip_id=str(index),
                content_id=content_id,
                path=f"mp4/{content_id}.mp4",
                num_frames=NUM_FRAMES,
                frame_px=FRAME_PX,
                fps=2.0,
                duration_s=NUM_FRAMES / 2,
                codec_metadata=True,
            )
        )
    return clips


def content(index: int) -> int:
    """Return the number of a clip's content."""
    return index - (index % EQUAL == EQUAL - 1)


def name_settings(count: int) -> list[Setting]:
    """Return settings of a tower that is not there, under names that do not follow the code."""
    configs = (OriginalConfig(), EventfulConfig(refreshed_tokens=8), EventfulConfig(refreshed_tokens=16))
    return [Setting(config, f"setting-{index}") for index, config in enumerate(configs[:count])]


def expect(subject: str, got: object, expected: object) -> None:
    """Refuse to report a run that did not do its work.

    Raises:
        RuntimeError: It did not.
    """
    if got != expected:
        raise RuntimeError(f"{subject}: got {got}, expected {expected}; the benchmark's figures would mean nothing")


def _connect(wait_s: float = 0.0) -> None:
    """Connect, and have the stage decode nothing, and encode by waiting, so long for each clip."""
    # Workers cannot import a job.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    Waiter.wait_s = wait_s
    embed.decode_batch = decode_nothing  # type: ignore[assignment, attr-defined]
    embed.EncodeRow = Waiter  # type: ignore[misc]
    cluster.connect()


# ----------------------------------------------------------------------------------------------------------- the tables
@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    clips: tuple[int, ...] = (1_000, 10_000)
    """Sizes of the load table's manifests, in clips."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of actors for the throughput table."""
    wait_ms: float = 25.0
    """Time for encoding a clip there, in milliseconds."""
    wait_clips: int = 2_000
    """Number of clips there."""
    rows: int = 1_000_000
    """Number of rows in the planning table's manifest; 0 leaves the table out."""
    scored_clips: tuple[int, ...] = (10_000, 40_000)
    """Sizes of the scoring table's manifests, in clips of 74 KB on disk; if empty, the table is left out."""
    json: Path | None = None
    """JSON file for the rows."""


def main(options: Options) -> None:
    """Measure, each row in a process of its own, and print the tables."""
    result: dict[str, Any] = {"hardware": cluster.hardware()}
    print(result["hardware"])
    result["load"] = [_on_cluster(f"report_load({count})") for count in options.clips]
    print_load(result["load"])
    result["throughput"] = [
        _on_cluster(f"report_throughput({count}, {options.wait_clips}, {options.wait_ms})") for count in options.workers
    ]
    print(f"\nworkers  clips/s   of {options.wait_ms:g} ms a clip")
    for row in result["throughput"]:
        print(f"{row['num_workers']:7} {row['clips_per_s']:8.1f} {row['share']:8.0%}")
    if options.rows:
        with tempfile.TemporaryDirectory() as folder:
            index_s = fill_store(Store(Path(folder)), options.rows)
            row = report_of("overhead", f"report_planning({folder!r}, {options.rows}, {index_s})")
        result["planning"] = row
        print("\n    rows  shards  batches  first index s  plan s  CPU s  peak MiB")
        print(
            f"{row['num_rows']:8} {row['num_shards']:7} {row['num_batches']:8} {row['index_s']:14.1f} "
            f"{row['plan_s']:7.1f} {row['plan_cpu_s']:6.1f} {row['peak_mib']:9.0f}   (at most 30 s and 2048 MiB)"
        )
    result["scoring"] = [_score(count) for count in options.scored_clips]
    print("\n  clips  frames  score s  CPU s  peak MiB  at start")
    for row in result["scoring"]:
        print(
            f"{row['num_clips']:7} {row['num_frames']:7} {row['score_s']:8.1f} {row['score_cpu_s']:6.1f} "
            f"{row['peak_mib']:9.0f} {row['before_mib']:9.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def print_load(loads: list[dict[str, Any]]) -> None:
    """Print the load table, and what each clip more costs."""
    print("\n  clips contents  transcode s  embed s  again s  driver CPU s  peak MiB  at start")
    for row in loads:
        print(
            f"{row['num_clips']:7} {row['num_contents']:8} {row['transcode_s']:12.1f} {row['embed_s']:8.1f} "
            f"{row['again_s']:8.2f} {row['driver_cpu_s']:13.1f} {row['peak_mib']:9.0f} {row['before_mib']:9.0f}"
        )
    for small, large in itertools.pairwise(loads):
        more = large["num_clips"] - small["num_clips"]
        each = {name: 1e3 * (large[name] - small[name]) / more for name in ("transcode_s", "embed_s", "driver_cpu_s")}
        print(
            f"a clip more costs {each['transcode_s']:.1f} ms in transcode, {each['embed_s']:.1f} ms in embed; "
            f"{each['driver_cpu_s']:.1f} ms of the driver's processor"
        )


def _score(num_clips: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        fill_embeddings(Store(Path(folder)), num_clips)
        return report_of("overhead", f"report_scoring({folder!r}, {num_clips})")


def _on_cluster(call: str) -> dict[str, Any]:
    with submit.cluster(LOGICAL_CPUS) as started:
        environment = submit.environment(started.token) | {"RAY_ADDRESS": started.address}
        return report_of("overhead", call, environment)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
