from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dejavu.cluster.cluster import Pool
from dejavu.embedding.batch import Batch, DecodedBatch, EmbedConfig, EmbedContext, Segment
from dejavu.embedding.encode import EncodedSegment
from dejavu.observability.events import keep_log
from dejavu.records import Failure, Transcoded
from dejavu.stages import embed
from dejavu.stages.embed import EncodeRow, embed_clips, encode_rows
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from dejavu.video.decode import DecodedFrames
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig

POOL = Pool(num_actors=1, cpus_per_actor=1, gpus_per_actor=0, cpus_per_reader=1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    keep_log(tmp_path / "logs")
    yield tmp_path / "logs"
    logger = logging.getLogger("dejavu.observability.events")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def segment(clip_id: str, start: int = 0) -> Segment:
    return Segment(clip_id=clip_id, content_id=f"content-{clip_id}", path="mp4/x.mp4", start=start, num_frames=2)


def transcoded(clip_id: str) -> Transcoded:
    return Transcoded(
        clip_id=clip_id,
        content_id=f"content-{clip_id}",
        path="mp4/x.mp4",
        num_frames=2,
        frame_px=16,
        fps=2.0,
        duration_s=1.0,
        codec_metadata=True,
    )


def decode(segments: Sequence[Segment], _: EmbedContext) -> DecodedBatch:
    """Make frames for every clip but `torn`."""
    kept = tuple(segment for segment in segments if segment.clip_id != "torn")
    frames = DecodedFrames(
        rgb_FHWC=np.zeros((2, 4, 4, 3), np.uint8),
        codec_F4PP=np.zeros((2, 4, 1, 1), np.float32),
        seconds_F=np.arange(2.0),
        picture_types="IP",
        codec_metadata=True,
    )
    torn = [segment for segment in segments if segment.clip_id == "torn"]
    failures = tuple(Failure(clip_id=one.clip_id, stage="embed", reason="VideoError: torn") for one in torn)
    return DecodedBatch(kept, (frames,) * len(kept), failures)


class Encoder(EncodeRow):
    def __init__(self, embedding: EmbedContext) -> None:
        self.embedding, self.backbone = embedding, None

    def method(self, _: Setting) -> None:
        """There is none."""

    def compute(self, _method: None, _backbone: None, frames: Sequence[DecodedFrames], _: int) -> list[EncodedSegment]:
        zeros = np.zeros((2, 4), np.float32)
        return [EncodedSegment(zeros, zeros[:, 0], np.zeros(2)) for _ in frames]


class Plainly:
    """Stands in for a data set of Ray's: kernels are laid over its rows without a cluster."""

    def __init__(self, rows: Iterable[Any], **_: int) -> None:
        self.rows = rows

    def map(self, kernel: Callable[[Any], Any], **_: float) -> Plainly:
        return Plainly(map(kernel, self.rows))

    def map_batches(self, kernel: type[EncodeRow], *, fn_constructor_args: tuple[EmbedContext], **_: Any) -> Plainly:
        encoder = kernel(*fn_constructor_args)
        encoded = (encoder({name: np.array([value]) for name, value in row.items()}) for row in self.rows)
        return Plainly({name: column[0] for name, column in row.items()} for row in encoded)

    def iter_rows(self) -> Iterable[Any]:
        return self.rows


def test_a_clips_way_and_the_stages_progress_are_logged(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed.ray.data, "from_items", Plainly)
    monkeypatch.setattr(embed, "configure", lambda **_: None)
    config = EmbedConfig()
    methods = [OriginalConfig(), EventfulConfig(refreshed_tokens=8)]
    settings = tuple(name_setting(method, "tower", config.shaping()) for method in methods)
    batches = [
        Batch((segment("long"), segment("short")), settings),
        Batch((segment("long", 2), segment("torn")), settings),
    ]
    embedding = EmbedContext("embedded", Store(tmp_path / "store"), config)
    clips = [transcoded(clip_id) for clip_id in ("long", "short", "torn", *"12345")]
    for name, stand_in in (("plan", lambda *_: batches), ("decode_batch", decode), ("EncodeRow", Encoder)):
        monkeypatch.setattr(embed, name, stand_in)
    embedded = embed_clips(clips, settings, embedding, POOL, "test")
    assert embedded.num_clips == 2
    assert [asdict(failure) for failure in embedded.failures] == [
        {"clip_id": "torn", "stage": "embed", "reason": "VideoError: torn"}
    ]
    told = lines(log)
    assert {name: told[0][name] for name in ("event", "total", "unit", "kept")} == {
        "event": "stage begins", "total": 3, "unit": "clips", "kept": 5
    }  # fmt: skip
    assert [line["done"] for line in told if line["event"] == "progress"] == [3], "pieces of a clip are not clips"
    way = [(line["event"], line.get("method")) for line in told if "short" in line.get("clip_ids", [])]
    assert way == [
        ("decode begins", None),
        ("decode ends", None),
        ("encode begins", "original"),
        ("encode ends", "original"),
        ("decode begins", None),  # there are few batches, so that their settings are apart
        ("decode ends", None),
        ("encode begins", "eventful"),
        ("encode ends", "eventful"),
    ]
    assert [line["num_frames"] for line in told if line["event"] == "encode ends"] == [4, 4, 2, 2]
    whole = {one.unit_id for batch in batches for one in batch.segments if one.clip_id != "torn"}
    assert [set(embedding.store.done(setting.setting_id)) for setting in settings] == [whole, whole]
    assert [line["reason"] for line in told if line.get("clip_id") == "torn"] == ["VideoError: torn"]


@pytest.mark.parametrize(("gpus", "in_flight"), [(0, 1), (1, None)])
def test_no_batch_waits_in_a_busy_actor_while_another_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, in_flight: int | None
) -> None:
    asked: list[Any] = []

    def map_batches(rows: Plainly, _kernel: object, *, compute: Any, **_: Any) -> Plainly:
        asked.append((compute.min_size, compute.max_size, compute.max_tasks_in_flight_per_actor))
        return rows

    monkeypatch.setattr(Plainly, "map_batches", map_batches)
    pool = replace(POOL, num_actors=3, gpus_per_actor=gpus)
    embedding = EmbedContext("embedded", Store(tmp_path / "store"), EmbedConfig())
    for num_blocks in (2, 30):
        assert list(encode_rows(Plainly([]), num_blocks, embedding, pool)) == []
    assert asked == [(2, 2, in_flight), (3, 3, in_flight)]


def test_a_stage_with_nothing_to_do_says_so(log: Path, tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path / "store"), EmbedConfig())
    assert embed_clips([], [], embedding, POOL, "test").num_clips == 0
    assert [(line["event"], line.get("kept")) for line in lines(log)] == [
        ("stage begins", 0), ("progress", None), ("stage ends", None)
    ]  # fmt: skip
