from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dejavu.records import AnswerScore, Question, Transcoded
from dejavu.stages.score import EvalSet, SettingScore
from dejavu.storage.setting import Setting
from dejavu.sweep.trial import cut_eval_set, quality, reached_by, shortfall, validation_metrics
from dejavu.tasks.neighbours import Agreement
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.method import MethodConfig


def score(config: MethodConfig, gflops: float, cosine: float) -> SettingScore:
    return SettingScore(
        setting=Setting(config, config.setting),
        num_clips=1,
        num_frames=1,
        reuse_rate=0.0,
        gflops_per_frame=gflops,
        cosine_to_dense=cosine,
        task=None,
    )


def test_settings_are_chosen_by_neighbours_where_nobody_has_answered() -> None:
    near = replace(score(CmcConfig(threshold=1.0), 1.0, 0.99), agreement=Agreement(0.4, {"a": (0.3, 0.5)}))
    assert quality(near) == 0.4
    assert validation_metrics(near)["agreement"] == 0.4
    answered = replace(near, answers=AnswerScore(accuracy=0.5, rows=()))
    assert quality(answered) == 0.5
    assert answered.answers is not None
    assert quality(replace(answered, by_reader={"linear_probe": answered.answers})) == 0.4  # classes: few answers
    assert quality(replace(near, agreement=None)) == 0.99


def clip(name: str, content_id: str) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=content_id,
        path=f"{name}.mp4",
        num_frames=8,
        frame_px=64,
        fps=2.0,
        duration_s=4.0,
        codec_metadata=True,
    )


def question(clip_id: str) -> Question:
    return Question(
        question_id=f"{clip_id}_0",
        clip_id=clip_id,
        split="val",
        kind="TC",
        text="why?",
        answers=("a", "b"),
        correct=0,
        spans_s=(),
        duration_s=4.0,
    )


def eval_set(num_clips: int) -> EvalSet:
    clips = [clip(f"clip{index}", f"{9 - index}") for index in range(num_clips)]
    questions = tuple(question(one.clip_id) for one in clips)
    return EvalSet(tuple(clips), questions, {one.question_id: np.zeros((2, 4), np.float32) for one in questions})


@pytest.mark.parametrize("num_clips", [1, 2, 3, 7, 8])
def test_parts_grow_within_each_other_up_to_all_clips(num_clips: int) -> None:
    parts = cut_eval_set(eval_set(num_clips), (0.5, 0.25))
    clips = [[one.content_id for one in part.clips] for _, part in parts]
    assert clips[-1] == sorted(one.content_id for one in eval_set(num_clips).clips)
    assert all(fewer == more[: len(fewer)] and len(fewer) < len(more) for fewer, more in pairwise(clips))
    assert [share for share, _ in parts][-1] == 1
    assert all(len(part.clips) >= share * num_clips for share, part in parts)


def test_a_part_asks_about_its_own_clips_alone() -> None:
    for _, part in cut_eval_set(eval_set(8), (0.25, 0.5)):
        assert {one.clip_id for one in part.questions} == {one.clip_id for one in part.clips}


def test_without_shares_there_is_one_part() -> None:
    assert [share for share, _ in cut_eval_set(eval_set(5), ())] == [1]


GRID = [
    score(EventfulConfig(refreshed_tokens=8), 2.0, 0.6),
    score(EventfulConfig(refreshed_tokens=16), 4.0, 0.7),
    score(CmcConfig(threshold=3.0), 1.0, 0.8),
]


@pytest.mark.parametrize(
    ("gflops", "cosine", "gap"),
    [
        (3.0, 0.65, 0.0),  # between two of the grid, and better than the cheaper one
        (3.0, 0.52, 0.1),  # worse than what costs less
        (5.0, 0.66, 0.05),
        (1.0, 0.5, 0.0),  # cheaper than the grid of its own method: another method's is no rival
        (1.0, 0.32, 0.1),  # cheaper, but below half of the best
        (1.9, 0.0, 0.5),
    ],
)
def test_a_shortfall_is_the_gap_to_what_the_grid_reaches_at_that_cost(gflops: float, cosine: float, gap: float) -> None:
    found = shortfall(score(EventfulConfig(refreshed_tokens=9), gflops, cosine), reached_by(GRID))
    assert found == pytest.approx(gap)


def test_nothing_falls_short_of_a_grid_that_is_worth_nothing() -> None:
    grid = reached_by([score(CmcConfig(threshold=3.0), 1.0, 0.0)])
    assert shortfall(score(CmcConfig(threshold=9.0), 2.0, 0.0), grid) == 0
