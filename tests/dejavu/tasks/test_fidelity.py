from __future__ import annotations

import numpy as np
import pytest

from dejavu.tasks.fidelity import frame_cosines


def test_the_cosine_ignores_length_and_knows_direction() -> None:
    original_FE = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    embeddings_FE = np.array([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [3.0, 3.0]])
    assert frame_cosines(embeddings_FE, original_FE) == pytest.approx([1.0, 0.0, -1.0, np.sqrt(0.5)])


def test_half_precision_neither_overflows_nor_exceeds_one() -> None:
    embeddings_FE = np.full((3, 768), 300.0, dtype=np.float16)  # its squares sum to more than half precision holds
    cosine_F = frame_cosines(embeddings_FE, embeddings_FE)
    assert cosine_F.max() <= 1.0
    assert cosine_F == pytest.approx(1.0)


def test_what_has_no_cosine_is_refused() -> None:
    ones_FE = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"the same .F, E."):
        frame_cosines(ones_FE[:1], ones_FE)
    with pytest.raises(ValueError, match="frame 1"):
        frame_cosines(np.array([[1.0, 0, 0], [0, 0, 0]]), ones_FE)
    with pytest.raises(ValueError, match="frame 0"):
        frame_cosines(np.array([[np.nan, 0, 0], [1, 0, 0]]), ones_FE)
    with pytest.raises(ValueError, match=r"the same .F, E."):
        frame_cosines(ones_FE[:0], ones_FE[:0])
