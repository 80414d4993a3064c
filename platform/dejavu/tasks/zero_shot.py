"""Grounded questions without a trained head: which answer looks most like some frame, and where.

Shapes: F frames, A answers, E embedding width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SPAN_LEVEL = 0.6
"""A frame belongs to the span while its score lies above median + SPAN_LEVEL * (peak - median)."""
USUAL_SHARE = 0.4
"""Share of an answer's median cosine over the clip that is taken off its peak. Some phrases fit every frame of a clip a
little (a colour of the background, a shape that others contain): what is usual says less than what stands out. Chosen
on the demo's validation clips, where 0.3 to 0.5 are alike and 0 loses 7 points of Acc@QA."""


def zero_shot(frames_FE: ArrayLike, seconds_F: ArrayLike, answers_AE: ArrayLike) -> tuple[int, tuple[float, float]]:
    """Answer one question about one clip: an index into its answers, and where that was seen, in seconds.

    An answer's score is the largest cosine over frames, since what is asked for may be there for one frame alone, less
    a share of its median over frames, which is how well it fits the clip at any time. The span runs from the best frame
    of the chosen answer to both sides while frames score above median + 0.6 (peak - median), and half a frame period
    further at both ends, since a frame stands for the time around it.

    Embeddings may be of any length; the frames' times are ascending.

    Raises:
        ValueError: There is no frame or no answer, or the shapes do not fit.
    """
    frames_FE = np.asarray(frames_FE, dtype=np.float32)
    answers_AE = np.asarray(answers_AE, dtype=np.float32)
    seconds_F = np.asarray(seconds_F, dtype=np.float64)
    _check(frames_FE, seconds_F, answers_AE)
    scores_FA = unit(frames_FE) @ unit(answers_AE).T
    scores_A = scores_FA.max(axis=0) - np.float32(USUAL_SHARE) * np.median(scores_FA, axis=0).astype(np.float32)
    answer = int(scores_A.argmax())
    return answer, span_around_peak(scores_FA[:, answer], seconds_F)


def span_around_peak(scores_F: NDArray[np.float32], seconds_F: NDArray[np.float64]) -> tuple[float, float]:
    """Return (start, end) in seconds of the frames around the best one that score nearly as well."""
    peak = int(scores_F.argmax())
    median = float(np.median(scores_F))
    level = median + SPAN_LEVEL * (float(scores_F[peak]) - median)
    first = last = peak
    while first > 0 and scores_F[first - 1] > level:
        first -= 1
    while last + 1 < len(scores_F) and scores_F[last + 1] > level:
        last += 1
    half_s = float(np.median(np.diff(seconds_F))) / 2 if len(seconds_F) > 1 else 0.0
    return max(0.0, float(seconds_F[first]) - half_s), float(seconds_F[last]) + half_s


def _check(frames_FE: NDArray[np.float32], seconds_F: NDArray[np.float64], answers_AE: NDArray[np.float32]) -> None:
    fits = (
        frames_FE.ndim == answers_AE.ndim == 2
        and len(frames_FE) > 0
        and len(answers_AE) > 0
        and frames_FE.shape[1] == answers_AE.shape[1]
        and seconds_F.shape == (len(frames_FE),)
    )
    if not fits:
        raise ValueError(
            f"zero-shot: got frames {frames_FE.shape}, times {seconds_F.shape} and answers {answers_AE.shape}, "
            "expected [F, E], [F] and [A, E], F and A at least 1; embed both with one backbone"
        )


def unit(x_XE: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return rows of length 1 along the last axis; a row of zeros stays one."""
    wide_XE = x_XE.astype(np.float32, copy=False)
    unit_XE: NDArray[np.float32] = wide_XE / np.maximum(np.linalg.norm(wide_XE, axis=-1, keepdims=True), 1e-12)
    return unit_XE
