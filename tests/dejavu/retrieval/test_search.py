"""Exact search, against plain loops over the definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dejavu.retrieval.search import Frames, Moment, MomentConfig, best_moments, cosines, find_moments, usual_cosines


def collection(num_frames: list[int], width: int = 8, seed: int = 0, period_s: float = 0.5) -> Frames:
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *num_frames])
    frame_R = np.concatenate([np.arange(count) for count in num_frames]).astype(np.int32)
    return Frames(
        tuple(f"clip{index}" for index in range(len(num_frames))),
        tuple(f"content{index}" for index in range(len(num_frames))),
        starts,
        frame_R,
        frame_R * period_s,
        rng.normal(size=(starts[-1], width)).astype(np.float16),
    )


def moments(frames: Frames, score_R: np.ndarray, config: MomentConfig) -> list[Moment]:
    return best_moments(frames, score_R, score_R, config)


def test_cosines_are_those_of_the_definition() -> None:
    frames = collection([3000, 1500, 7], width=16)  # more than one block, the last one short
    query_E = np.random.default_rng(1).normal(size=16)
    wide_RE = frames.embedding_RE.astype(np.float64)
    expected_R = wide_RE @ query_E / (np.linalg.norm(wide_RE, axis=1) * np.linalg.norm(query_E))
    np.testing.assert_allclose(cosines(frames, query_E), expected_R, atol=1e-5)


def test_a_frame_without_direction_is_never_found() -> None:
    whole = collection([4])
    whole.embedding_RE[1] = 0
    whole.embedding_RE[2] = np.nan
    frames = replace(whole)  # measured anew
    score_R = cosines(frames, np.ones(8))
    found = moments(frames, score_R, MomentConfig(top=9, merge_s=0))
    assert np.isneginf(score_R[[1, 2]]).all()
    assert {moment.frame for moment in found} == {0, 3}


def plain_suppression(frames: Frames, score_R: np.ndarray, merge_s: float) -> list[int]:
    """Every pair compared, no spans: what is left when each hit silences its neighbours of lower score."""
    left = sorted(range(len(score_R)), key=lambda row: (-score_R[row], row))
    clip_R = np.searchsorted(frames.starts, np.arange(len(score_R)), side="right")
    kept: list[int] = []
    for row in left:
        near = [k for k in kept if clip_R[k] == clip_R[row]]
        if all(abs(frames.seconds_R[k] - frames.seconds_R[row]) > merge_s for k in near):
            kept.append(row)
    return kept


def test_moments_are_those_of_plain_suppression_where_no_span_is_longer_than_the_merged_time() -> None:
    frames = collection([200, 1, 90], seed=3)
    score_R = np.random.default_rng(4).permutation(291).astype(np.float32) / 291
    found = moments(frames, score_R, MomentConfig(top=1000, merge_s=10.0))
    expected = plain_suppression(frames, score_R, 10.0)
    assert all(moment.end_s - moment.start_s < 10 for moment in found)
    assert [moment.score for moment in found] == [score_R[row] for row in expected]


def test_a_long_presence_is_one_moment() -> None:
    frames = collection([60])
    score_R = np.full(60, 0.1, np.float32)
    score_R[20:40] = 0.8 + 0.001 * np.arange(20)  # ten seconds, the last frame best
    found = moments(frames, score_R, MomentConfig(top=2, merge_s=0.5))
    assert (found[0].frame, found[0].start_s, found[0].end_s) == (39, 9.75, 19.75)
    assert found[1].score == pytest.approx(0.1)


def test_the_second_best_moment_ends_where_a_better_one_begins() -> None:
    frames = collection([41])
    score_R = np.zeros(41, np.float32)
    score_R[5:8], score_R[20:25] = 0.9, 0.5
    first, second = moments(frames, score_R, MomentConfig(top=2, merge_s=2.0))
    assert (first.start_s, first.end_s) == (2.25, 3.75)
    assert (second.frame, second.start_s, second.end_s) == (20, 9.75, 12.25)


def test_asking_for_more_changes_nothing_at_the_head_of_the_list() -> None:
    frames = collection([500, 500], seed=5)
    score_R = np.round(np.random.default_rng(6).random(1000), 2).astype(np.float32)  # many equal scores
    few = moments(frames, score_R, MomentConfig(top=3))
    assert moments(frames, score_R, MomentConfig(top=60))[:3] == few
    assert len(few) == 3


def test_what_is_usual_is_each_clips_median() -> None:
    frames = collection([1, 2, 5, 300, 4])
    cosine_R = np.random.default_rng(7).uniform(-1, 1, 312).astype(np.float32)
    expected = [np.median(piece) for piece in np.split(cosine_R.astype(np.float64), frames.starts[1:-1])]
    np.testing.assert_allclose(usual_cosines(frames, cosine_R), expected, atol=1e-9)


def test_what_stands_out_comes_before_what_is_always_there() -> None:
    frames = collection([9, 9], width=2)
    angle_R = np.full(18, 0.5)
    angle_R[9:] = 1.3
    angle_R[13] = 0.6  # a little less like the query than every frame of the first clip
    frames = replace(frames, embedding_RE=np.stack([np.cos(angle_R), np.sin(angle_R)], axis=1).astype(np.float16))
    plain = find_moments(frames, [1, 0], MomentConfig(usual_share=0))
    ours = find_moments(frames, [1, 0], MomentConfig(usual_share=0.4))
    assert (plain[0].clip_id, ours[0].clip_id) == ("clip0", "clip1")
    assert ours[0].score == pytest.approx(np.cos(0.6) - 0.4 * np.cos(1.3), abs=1e-3)
    assert ours[0].cosine == pytest.approx(np.cos(0.6), abs=1e-3)


@pytest.mark.parametrize("query", [np.zeros(8), np.ones(7), np.full(8, np.nan)])
def test_a_query_without_direction_or_of_another_width_is_refused(query: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"query: got .*, expected \[8\]"):
        cosines(collection([3]), query)


@pytest.mark.parametrize("values", [{"top": 0}, {"merge_s": -1.0}, {"merge_s": float("nan")}, {"usual_share": 1.1}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        MomentConfig(**values)
