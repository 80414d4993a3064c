from __future__ import annotations

import numpy as np
import pytest

from dejavu.tasks.fidelity import frame_cosines, score_fidelity


def test_the_cosine_ignores_length_and_knows_direction() -> None:
    original_FE = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    embeddings_FE = np.array([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [3.0, 3.0]])
    assert frame_cosines(embeddings_FE, original_FE) == pytest.approx([1.0, 0.0, -1.0, np.sqrt(0.5)])


def test_half_precision_neither_overflows_nor_exceeds_one() -> None:
    embeddings_FE = np.full((3, 768), 300.0, dtype=np.float16)  # its squares sum to more than half precision holds
    cosine_F = frame_cosines(embeddings_FE, embeddings_FE)
    assert cosine_F.max() <= 1.0
    assert cosine_F == pytest.approx(1.0)


def test_every_frame_weighs_the_same_over_all_and_every_clip_is_told() -> None:
    result = score_fidelity({"a": np.array([1.0]), "b": np.array([0.5, 0.5, 0.8])})
    assert (result.overall.num_frames, result.overall.mean, result.overall.min) == (4, pytest.approx(0.7), 0.5)
    assert result.by_clip["a"].mean == 1.0
    assert (result.by_clip["b"].mean, result.by_clip["b"].min) == (pytest.approx(0.6), 0.5)


def test_five_percent_of_the_frames_lie_below_p5() -> None:
    cosine_F = np.linspace(0.0, 1.0, 1001)
    assert score_fidelity({"a": cosine_F}).overall.p5 == pytest.approx(0.05)


def test_what_has_no_cosine_is_refused() -> None:
    ones_FE = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"the same .F, E."):
        frame_cosines(ones_FE[:1], ones_FE)
    with pytest.raises(ValueError, match="frame 1"):
        frame_cosines(np.array([[1.0, 0, 0], [0, 0, 0]]), ones_FE)
    with pytest.raises(ValueError, match="frame 0"):
        frame_cosines(np.array([[np.nan, 0, 0], [1, 0, 0]]), ones_FE)
    with pytest.raises(ValueError, match="1 of them without frames"):
        score_fidelity({"a": np.array([])})
