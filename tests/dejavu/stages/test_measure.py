"""Time and memory of settings, without a cluster: what an actor does is called here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dejavu.embedding.batch import PRECISIONS, EmbedConfig, Embedding
from dejavu.records import Transcoded
from dejavu.stages import measure
from dejavu.stages.measure import Timing, peak_bytes
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from dejavu.video.plain import write_moving_texture
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig

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
        Embedding("embedded", store, EmbedConfig(chunk_frames=4)), [asdict(clip)], {"num_frames": 8, "num_rounds": 1}
    )


def test_a_setting_is_timed_with_its_decoding_and_its_memory_comes_out_the_same(
    stopwatch: measure._Stopwatch,
) -> None:
    original, ours = (
        name_setting(config, stopwatch.backbone.identity, {}).to_row()
        for config in (OriginalConfig(), EventfulConfig(refreshed_tokens=8))
    )
    first, again = (Timing(**stopwatch.time(ours, original)) for _ in range(2))
    assert min(first.ms_per_frame, first.speedup, first.decode_ms_per_frame) > 0
    assert first.dense == again.dense  # measured once
    assert first.dense in PRECISIONS
    assert sum(len(frames.seconds_F) for frames in stopwatch.frames) == 8
    assert again.peak_memory_mb == pytest.approx(first.peak_memory_mb, rel=0.05)
    # Eventful keeps what it computed last; Original keeps nothing.
    assert first.peak_memory_mb > 0.1
    dense = Timing(**stopwatch.time(original, original))
    assert 0 < dense.peak_memory_mb != first.peak_memory_mb


def test_timings_of_another_version_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    assert measure._read(path) == {}
    timing = Timing(
        ms_per_frame=1.0, speedup=2.0, decode_ms_per_frame=0.5, codec_ms_per_frame=0.1, peak_memory_mb=3.0,
        hardware="here", dense="float32",
    )  # fmt: skip
    row = asdict(timing)
    old = {name: value for name, value in row.items() if "decode" not in name}
    path.write_text(json.dumps({"kept": row, "old": old, "newer": row | {"watts": 7}}))
    assert measure._read(path) == {"kept": timing}
