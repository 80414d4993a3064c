"""Retrieval, against ranks counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dejavu.records import CAPTION, Question
from dejavu.tasks.retrieval import pool, score_retrieval


def caption(number: int, clip_id: str) -> Question:
    return Question(
        question_id=f"c{number}", clip_id=clip_id, split="test", kind=CAPTION, text="t", answers=("t",), correct=0,
        spans_s=(), duration_s=0.0,
    )  # fmt: skip


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_pooling_averages_directions_not_lengths() -> None:
    np.testing.assert_allclose(pool([[3.0, 0.0], [0.0, 0.5]]), [2**-0.5, 2**-0.5], rtol=1e-6)


def test_a_mean_without_direction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frames: got a mean of length 0\.0"):
        pool([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match=r"frames: got \(0, 2\)"):
        pool(np.zeros((0, 2)))


def test_ranks_are_those_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    clips = {f"v{index}": unit(rng.normal(size=6)).astype(np.float32) for index in range(30)}
    captions = [caption(index, f"v{index % 30}") for index in range(75)]  # some clips have two captions, some three
    text_TE = unit(rng.normal(size=(75, 6)) + 2 * np.stack([clips[one.clip_id] for one in captions]))
    result = score_retrieval(captions, text_TE, clips)

    fits = {(t, v): float(np.float32(text_TE[t]) @ clips[v]) for t in range(75) for v in clips}
    to_video = []
    for t, one in enumerate(captions):
        to_video.append(sum(fits[t, v] >= fits[t, one.clip_id] for v in clips))
    to_text = []
    for v in clips:
        best = {w: max(fits[t, v] for t in range(75) if captions[t].clip_id == w) for w in clips}
        to_text.append(sum(value >= best[v] for value in best.values()))
    for ranks, found in ((to_video, result.text_to_video), (to_text, result.video_to_text)):
        assert found is not None
        assert found.at_1 == pytest.approx(np.mean(np.array(ranks) == 1))
        assert found.at_5 == pytest.approx(np.mean(np.array(ranks) <= 5))
        assert found.at_10 == pytest.approx(np.mean(np.array(ranks) <= 10))
        assert found.median_rank == np.median(ranks)
    assert [row.correct for row in result.rows] == [rank == 1 for rank in to_video]
    assert result.accuracy == result.text_to_video.at_1  # type: ignore[union-attr]
    assert 0.1 < result.accuracy < 0.9  # neither trivial nor hopeless
    assert len(result.rows) == 75


def test_embeddings_that_are_all_alike_find_nothing() -> None:
    clips = {name: np.array([1, 0], np.float32) for name in "ab"}
    result = score_retrieval([caption(0, "a"), caption(1, "b")], [[1, 0], [1, 0]], clips)
    assert result.accuracy == 0
    assert result.video_to_text is not None
    assert result.video_to_text.median_rank == 2


@pytest.mark.parametrize(
    "captions", [[], [caption(0, "a"), caption(0, "a")], [caption(0, "elsewhere")]], ids=["none", "twice", "stranger"]
)
def test_captions_that_do_not_fit_are_refused(captions: list[Question]) -> None:
    with pytest.raises(ValueError, match="retrieval: got"):
        score_retrieval(captions, np.ones((len(captions), 2)), {"a": np.array([1, 0], np.float32)})
