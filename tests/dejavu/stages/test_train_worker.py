"""What the workers of a fit share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dejavu.embedding.batch import EmbedConfig, EmbedContext, Segment
from dejavu.records import Transcoded
from dejavu.stages import train_worker
from dejavu.stages.target_fit import PROBED_BIASES, TargetFit
from dejavu.stages.train_task import TrainConfig
from dejavu.stages.train_worker import AddonTrainer
from dejavu.storage.store import Store

RATES = {"a": 0.2, "b": 0.8, "c": 0.5, "d": 0.6, "unreadable": 0.0}
FRAMES = {"a": 10, "b": 30, "c": 20, "d": 40, "unreadable": 50}


def clip(name: str, content: str) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=content,
        path=f"mp4/{content}.mp4",
        num_frames=FRAMES[content],
        frame_px=128,
        fps=2.0,
        duration_s=FRAMES[content] / 2,
        codec_metadata=True,
    )


@pytest.fixture(autouse=True)
def _without_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip has the reuse rate of its name, and 0.1 more under the second add-on, whatever the bias."""

    def decode(segments: Sequence[Segment], _: EmbedContext) -> Any:
        readable = [one for one in segments if one.content_id != "unreadable"]
        frames = [SimpleNamespace(name=one.content_id, seconds_F=range(one.num_frames)) for one in readable]
        return SimpleNamespace(frames=frames)

    def curve(config: Any, _: object, frames: Sequence[Any]) -> list[float]:
        more = 0.1 if "0.9" in config.weights else 0.0
        total = sum(len(one.seconds_F) for one in frames)
        rate = sum((RATES[one.name] + more) * len(one.seconds_F) for one in frames) / total
        return [rate + bias / 100 for bias in PROBED_BIASES]

    monkeypatch.setattr(train_worker, "decode_batch", decode)
    monkeypatch.setattr(train_worker, "rate_curve", curve)
    monkeypatch.setattr(train_worker, "save_addon", lambda _addon, _path: None)


def trainer(tmp_path: Path, rank: int, world: int, clips: Sequence[Transcoded]) -> Any:
    worker: Any = AddonTrainer.__new__(AddonTrainer)
    worker.rank, worker.world = rank, world
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig(precision="float32"))
    config = TrainConfig(calibration_clips=5, calibrated_rates=(0.5,))
    worker.task = SimpleNamespace(config=config, validation=clips, embedding=embedding)
    worker.plan = SimpleNamespace(calibrated_at_once=2)
    worker.backbone = SimpleNamespace(vit=SimpleNamespace(position=torch.zeros(1)))
    worker.fits = [TargetFit(target, fit=None, best=None) for target in (0.8, 0.9)]
    return worker


def calibrate(workers: Sequence[Any]) -> None:
    """Let each give its part, and then each go on with the parts of all."""
    parts: list[Any] = []

    def give(own: list[Any]) -> list[Any]:
        parts.extend(own)
        return []

    for worker in workers:
        worker._gather = give
        worker._calibrate()
        assert worker.fits[0].achieved is None
    for worker in workers:
        worker._gather = lambda _own: parts
        worker._calibrate()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_biases_do_not_depend_on_how_many_workers_share_the_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], world: int
) -> None:
    # Of two videos with the same contents, one counts.
    clips = [clip("1", "a"), clip("2", "b"), clip("3", "b"), clip("4", "c"), clip("5", "unreadable"), clip("6", "d")]
    workers = [trainer(tmp_path, rank, world, clips) for rank in range(world)]
    calibrate(workers)
    counted = ("a", "b", "c", "d")  # the first five clips by their contents
    rate = sum(RATES[name] * FRAMES[name] for name in counted) / sum(FRAMES[name] for name in counted)
    for worker in workers:
        for one, more in zip(worker.fits, (0.0, 0.1), strict=True):
            assert one.achieved == pytest.approx(rate + more)
            assert one.biases.keys() == {"0.5"}
    assert capsys.readouterr().out.count("on validation clips") == 2  # a line for each fit


def test_without_a_clip_that_can_be_read_there_is_no_bias(tmp_path: Path) -> None:
    workers = [trainer(tmp_path, rank, 2, [clip("5", "unreadable")]) for rank in range(2)]
    calibrate(workers)
    assert [one.biases for worker in workers for one in worker.fits] == [{}] * 4
