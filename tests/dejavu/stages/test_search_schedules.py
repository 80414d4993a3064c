"""Which training frames a schedule search sees, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dejavu.backbones.load import Backbone
from dejavu.embedding.batch import EmbedContext
from dejavu.stages import search_schedules as stage
from dejavu.stages import train_task
from dejavu.stages.search_schedules import SchedulesConfig, gather_frames, read_schedules
from dejavu.stages.train_task import TrainError
from dejavu.video.decode import decode
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit
from tests.dejavu.stages.conftest import clip


def test_frames_are_spread_over_the_middle_of_each_clip(backbone: Backbone, embedding: EmbedContext) -> None:
    clips = [clip(embedding, name, num_frames) for name, num_frames in (("a", 9), ("b", 72), ("c", 20))]
    frames_FHW3, failures = gather_frames(clips, 12, backbone.frame_px, embedding)
    assert failures == ()
    # Four of each: 0..8 of nine; 20..51 of 72, where 32 is the longest stretch; 0..19 of twenty.
    expected = {"a": (0, 3, 5, 8), "b": (20, 30, 41, 51), "c": (0, 6, 13, 19)}
    for place, (name, wanted) in enumerate(expected.items()):
        rgb_FHWC = np.concatenate([part.rgb_FHWC for part in decode(embedding.store.mp4_path(name))])
        assert (frames_FHW3[4 * place : 4 * place + 4].numpy() == rgb_FHWC[list(wanted)]).all()


def test_a_clip_that_cannot_be_read_is_named_and_left_out(backbone: Backbone, embedding: EmbedContext) -> None:
    good, broken = clip(embedding, "a", 12), clip(embedding, "b", 12)
    embedding.store.mp4_path("b").write_bytes(b"no video")
    frames_FHW3, failures = gather_frames([good, broken], 16, backbone.frame_px, embedding)
    assert len(frames_FHW3) == 8
    assert [(failure.clip_id, failure.stage) for failure in failures] == [("b", "schedules")]


def test_few_clips_give_more_frames_each(backbone: Backbone, embedding: EmbedContext) -> None:
    frames_FHW3, _ = gather_frames([clip(embedding, "a", 40)], 20, backbone.frame_px, embedding)
    assert len(frames_FHW3) == 20
    none, _ = gather_frames([], 20, backbone.frame_px, embedding)
    assert none.shape == (0, 128, 128, 3)


def test_nothing_searched_is_nothing_to_read(backbone: Backbone, embedding: EmbedContext) -> None:
    assert read_schedules(embedding, backbone) == ()


def test_a_task_that_no_machine_has_the_memory_for_is_refused(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_task, "grows", lambda: False)
    monkeypatch.setattr(train_task, "memory_per_machine", lambda: [2**28, 2**29])
    with pytest.raises(
        TrainError, match=r"got machines of 0\.5 GiB at most, expected \d\.\d GiB for a search"
    ) as refusal:
        stage.check_memory(backbone, SchedulesConfig())
    assert "--schedules.search.kept-mib" in str(refusal.value)
    monkeypatch.setattr(train_task, "memory_per_machine", lambda: [2**28, 2**32])
    assert 2**29 < stage.check_memory(backbone, SchedulesConfig()) < 1.5 * 2**30


def test_a_search_of_the_largest_usual_tower_takes_less_than_4_gib() -> None:
    with torch.device("meta"):
        tower = Vit(KNOWN_SHAPES["openai/clip-vit-large-patch14"])
    assert stage.task_bytes(tower, 256, SchedulesConfig()) < 4 * 2**30


def test_shares_and_frames_that_make_no_sense_are_refused() -> None:
    for shares in ((), (0.5, 0.5), (0.0,), (1.2,), (float("nan"),)):
        with pytest.raises(ValueError, match=r"schedules\.shares: got .*, expected different numbers in 0\.\.1"):
            SchedulesConfig(shares=shares)
    with pytest.raises(ValueError, match=r"schedules\.num_frames: got 40, expected 48 or more"):
        replace(SchedulesConfig(), num_frames=40)
