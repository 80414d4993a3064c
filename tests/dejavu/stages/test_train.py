"""What training refuses at start, and what a fit is named by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.records import Transcoded
from dejavu.stages.train import read_addons, train_addons
from dejavu.stages.train_task import TrainConfig, TrainError
from dejavu.storage.setting import name_setting
from dejavu.storage.store import Store
from reuse_models.baselines.original import OriginalConfig

ORIGINAL = name_setting(OriginalConfig(), "tower", EmbedConfig().shaping())


def clip(name: str, num_frames: int) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=name,
        path=f"mp4/{name}.mp4",
        num_frames=num_frames,
        frame_px=128,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )


@pytest.mark.parametrize("target", [-0.1, 1.2])
def test_a_target_outside_0_to_1_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        TrainConfig(targets=(0.9, target))


def test_the_same_target_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="different rates"):
        TrainConfig(targets=(0.9, 0.9))


def test_too_few_or_too_short_clips_are_refused_at_start(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    short = [clip(str(index), 12) for index in range(40)]
    with pytest.raises(TrainError, match="got 40, of which 0 have 13 frames or more"):
        train_addons({"train": short, "val": []}, ORIGINAL, embedding, TrainConfig())
    few = [clip(str(index), 13) for index in range(7)]
    with pytest.raises(TrainError, match="give 7 windows, expected 8 or more"):
        train_addons({"train": few, "val": []}, ORIGINAL, embedding, TrainConfig())


def test_a_store_without_this_teacher_is_refused_at_start(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    with pytest.raises(TrainError, match="no dense embedding of 20 training clips"):
        train_addons({"train": [clip(str(i), 13) for i in range(20)]}, ORIGINAL, embedding, TrainConfig())


def test_nothing_trained_is_nothing_to_read(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    assert read_addons(embedding, ORIGINAL) == ()


def test_what_one_backbone_was_trained_for_is_not_read_for_another(tmp_path: Path) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    folder = tmp_path / "addons" / "one"
    folder.mkdir(parents=True)
    (folder / "fit.json").write_text('{"curve": [], "biases": {}, "achieved_rate": null}')
    (tmp_path / "addons" / f"latest-{ORIGINAL.backbone_identity[:12]}.json").write_text('{"0.8": "one"}')
    assert [addon.target for addon in read_addons(embedding, ORIGINAL)] == [0.8]
    assert read_addons(embedding, replace(ORIGINAL, backbone_identity="another")) == ()


def test_the_loss_takes_its_weights_from_the_config() -> None:
    loss = replace(TrainConfig(), second_last_weight=1.5).loss(0.8)
    assert (loss.target_rate, loss.second_last_weight, loss.rate_weight) == (0.8, 1.5, 0.35)


@pytest.mark.parametrize(
    ("windows", "course", "visits"),
    [(50, (1, 400), 8), (400, (5, 400), 5), (27_000, (16, 8435), 5), (8, (1, 400), 50)],
)
def test_little_video_is_visited_more_often_in_smaller_steps(
    windows: int, course: tuple[int, int], visits: int
) -> None:
    config = TrainConfig()
    assert config.course(windows) == course
    assert config.visits(windows) == visits


def test_a_step_has_as_many_windows_for_each_worker() -> None:
    assert TrainConfig().course(150, workers=2) == (2, 400)
    assert TrainConfig().course(400, workers=2) == (4, 500)
    assert TrainConfig().course(50, workers=4) == (4, 400)


def test_the_longest_fit_asked_for_bounds_the_shortest() -> None:
    assert TrainConfig(max_steps=3).course(50) == (1, 3)
