"""Time and memory of settings, without a cluster: what an actor does is called here."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dejavu.embedding.batch import PRECISIONS, EmbedConfig, EmbedContext
from dejavu.records import Transcoded
from dejavu.stages import measure
from dejavu.stages.measure import MeasureConfig, Timing, peak_bytes, rounds_within, sample_within, spread_over_motion
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from dejavu.video.plain import write_moving_texture
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.flops import dense_work, flops_per_frame
from reuse_models.method import Method

MEGABYTE = 2**20


def test_the_peak_is_what_was_held_at_once() -> None:
    before = torch.empty(8 * MEGABYTE, dtype=torch.uint8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        first = torch.empty(3 * MEGABYTE, dtype=torch.uint8)
        del first
        second = torch.empty(2 * MEGABYTE, dtype=torch.uint8)
        third = second + 1
    assert len(before) + len(third) == 10 * MEGABYTE
    # The second and the third, and the number 1 for a moment; not the first, which was gone.
    assert peak_bytes(watched) == pytest.approx(4 * MEGABYTE, abs=1024)


@pytest.fixture(scope="module")
def stopwatch(tmp_path_factory: pytest.TempPathFactory) -> measure._Stopwatch:
    store = Store.open(tmp_path_factory.mktemp("measure"))
    store.mp4_dir.mkdir()
    write_moving_texture(store.mp4_path("texture"), 10, 128)
    clip = Transcoded(
        clip_id="t", content_id="texture", path="mp4/texture.mp4", num_frames=10, frame_px=128, fps=2.0, duration_s=5.0,
        codec_metadata=True,
    )  # fmt: skip
    return measure._Stopwatch(
        EmbedContext("embedded", store, EmbedConfig(chunk_frames=4)), [clip], MeasureConfig(num_frames=8, num_rounds=1)
    )


def test_a_setting_is_timed_with_its_decoding_and_its_memory_comes_out_the_same(
    stopwatch: measure._Stopwatch,
) -> None:
    original, ours = (
        name_setting(config, stopwatch.backbone.identity, {})
        for config in (OriginalConfig(), EventfulConfig(refreshed_tokens=8))
    )
    first, again = (stopwatch.time(ours, original) for _ in range(2))
    assert min(first.ms_per_frame, first.speedup, first.decode_ms_per_frame) > 0
    assert first.dense == again.dense  # measured once
    assert first.dense in PRECISIONS
    assert sum(len(frames.seconds_F) for frames in stopwatch.frames) == 8
    assert again.peak_memory_mb == pytest.approx(first.peak_memory_mb, rel=0.05)
    # Eventful keeps what it computed last; Original keeps nothing.
    assert first.peak_memory_mb > 0.1
    dense = stopwatch.time(original, original)
    assert 0 < dense.peak_memory_mb != first.peak_memory_mb
    shape = stopwatch.backbone.vit.shape
    assert dense.gflops_per_frame == pytest.approx(float(flops_per_frame(shape, dense_work(shape))) / 1e9)
    # The first frame of the stream is computed whole, of the others 8 patches in most layers.
    assert 0.2 * dense.gflops_per_frame < first.gflops_per_frame < 0.8 * dense.gflops_per_frame


@pytest.mark.parametrize(("arithmetic", "tried"), [(True, ["float32", "bfloat16"]), (False, ["float32"])])
def test_original_is_tried_in_what_the_hardware_computes_in(
    stopwatch: measure._Stopwatch, monkeypatch: pytest.MonkeyPatch, arithmetic: bool, tried: list[str]
) -> None:
    if not stopwatch.frames:
        stopwatch._load()
    monkeypatch.setattr(measure, "has_bfloat16", lambda device: arithmetic)
    seen: list[torch.dtype] = []

    def seconds(method: Method) -> float:
        seen.append(method.vit.position.dtype)
        return 1.0 if seen[-1] == torch.bfloat16 else 2.0

    monkeypatch.setattr(stopwatch, "_encode_s", seconds)
    precision, method = stopwatch._fastest(OriginalConfig())
    assert {str(dtype).removeprefix("torch.") for dtype in seen} == set(tried)
    assert precision == str(method.vit.position.dtype).removeprefix("torch.") == tried[-1]


def test_the_timed_clips_are_spread_over_how_much_moves(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.mp4_dir.mkdir()
    clips = []
    for number, bytes_a_frame in enumerate([70, 10, 50, 30, 20, 60, 40, 80]):
        store.mp4_path(str(number)).write_bytes(b"x" * 2 * bytes_a_frame)
        clips.append(
            Transcoded(
                clip_id=str(bytes_a_frame), content_id=str(number), path=f"mp4/{number}.mp4", num_frames=2, frame_px=32,
                fps=2.0, duration_s=1.0, codec_metadata=True,
            )
        )  # fmt: skip
    assert [clip.clip_id for clip in spread_over_motion(clips, 4, store)] == ["20", "40", "60", "80"]
    assert [clip.clip_id for clip in spread_over_motion(clips, 1, store)] == ["50"]
    assert len(spread_over_motion(clips, 99, store)) == 8


@pytest.mark.parametrize(
    ("frame_s", "clips", "frames"), [(0.01, 8, 32), (0.05, 8, 25), (0.078, 8, 16), (0.2, 3, 16), (9.0, 1, 16)]
)
def test_a_slow_tower_is_timed_on_fewer_frames_then_on_fewer_clips(frame_s: float, clips: int, frames: int) -> None:
    assert sample_within(10.0, frame_s, 8, 32) == (clips, frames)
    assert sample_within(10.0, frame_s, 8, 6)[1] == 6


@pytest.mark.parametrize(("round_s", "rounds"), [(1.0, 5), (14.0, 5), (20.0, 3), (50.0, 2), (900.0, 2)])
def test_slow_settings_are_timed_in_fewer_rounds(round_s: float, rounds: int) -> None:
    assert rounds_within(60.0, round_s, 5) == rounds
    assert rounds_within(60.0, round_s, 1) == 1


def test_clips_are_left_out_where_original_takes_long(
    stopwatch: measure._Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = measure._Stopwatch(
        stopwatch.embedding,
        [replace(clip, clip_id=f"{clip.clip_id}{number}") for clip in stopwatch.clips for number in range(3)],
        MeasureConfig(num_frames=8, num_rounds=3),
    )
    if not stopwatch.frames:
        stopwatch._load()
    several.frames = [frames for frames in stopwatch.frames for _ in range(3)]
    monkeypatch.setattr(several, "_encode_s", lambda method: 4.5 * len(several.frames))
    monkeypatch.setattr(measure, "FEWEST_FRAMES", 8)
    several._shorten(OriginalConfig())
    assert len(several.frames) == 2
    monkeypatch.undo()
    monkeypatch.setattr(measure, "ROUNDS_S", 1e-6)
    named = name_setting(OriginalConfig(), stopwatch.backbone.identity, {})
    timing = several.time(named, named)
    assert (timing.num_clips, timing.num_rounds) == (2, 2)


def test_timings_of_another_version_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    assert measure._read(path) == {}
    timing = Timing(
        ms_per_frame=1.0, speedup=2.0, decode_ms_per_frame=0.5, codec_ms_per_frame=0.1, peak_memory_mb=3.0,
        hardware="here", gflops_per_frame=0.5, dense="float32", num_clips=4, num_rounds=5,
    )  # fmt: skip
    row = asdict(timing)
    old = {name: value for name, value in row.items() if "decode" not in name}
    path.write_text(json.dumps({"kept": row, "old": old, "newer": row | {"watts": 7}}))
    assert measure._read(path) == {"kept": timing}
