"""Spans in seconds from what a grounding head gives: a Gaussian, frame attention, or both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Span = tuple[float, float]

THRESHOLD = 1.3
"""A frame passes at this many times the mean of the normalised attention."""
FADE_S = 10.0
"""Seconds from the peak at which a score counts half."""
PATIENCE_S = 10.0
"""A failing frame this close to the peak is stepped over; a failing one further away ends the walk."""


def gaussian_span(fraction: Span, duration_s: float) -> Span:
    """Turn a span in fractions of a clip's annotated duration into seconds, rounded to 0.1 s as NExT-GQA does."""
    return round(fraction[0] * duration_s, 1), round(fraction[1] * duration_s, 1)


def posthoc_span(attention: Sequence[float], times_s: Sequence[float]) -> Span:
    """Find the span around the most attended frame: walk outwards while frames stay well above the mean.

    Of each sampled frame there is a weight, 0 or more, and its time, ascending.

    Returns:
        (start, end): the times of the left-most and right-most frames that passed; both the peak's if none did.

    Raises:
        ValueError: The two differ in length, are empty, or hold a value that is not finite.
    Source: NExT-GQA (arXiv:2309.01327), post-hoc grounding.
    """
    weights_F = np.asarray(attention, dtype=np.float64)
    times_F = np.asarray(times_s, dtype=np.float64)
    if weights_F.ndim != 1 or weights_F.shape != times_F.shape or not weights_F.size:
        raise ValueError(
            f"attention: got shape {weights_F.shape} and times {times_F.shape}, expected one time per frame; "
            "pass the frames that the head saw"
        )
    if not (np.isfinite(weights_F).all() and np.isfinite(times_F).all()):
        raise ValueError("attention: got a value that is not finite, expected finite weights and times; check the head")
    spread = float(np.ptp(weights_F))
    score_F = (weights_F - weights_F.min()) / spread if spread > 0 else np.zeros_like(weights_F)
    peak = int(weights_F.argmax())
    distance_F = np.abs(times_F - times_F[peak])
    passes_F = score_F / (1 + distance_F / FADE_S) >= THRESHOLD * score_F.mean()
    if spread == 0:  # every frame alike says nothing about where to look
        passes_F[:] = False
    far_F = distance_F > PATIENCE_S
    # Frame 0 is never taken on the left, the last one may be on the right: NExT-GQA's own ranges.
    left = _furthest(range(peak - 1, 0, -1), passes_F, far_F, peak)
    right = _furthest(range(peak + 1, len(times_F)), passes_F, far_F, peak)
    return float(times_F[left]), float(times_F[right])


def combined_span(gaussian_s: Span, posthoc_s: Span) -> Span:
    """Return the intersection of both spans, one touching point included, else the post-hoc one."""
    start, end = max(gaussian_s[0], posthoc_s[0]), min(gaussian_s[1], posthoc_s[1])
    return (start, end) if start <= end else posthoc_s


def _furthest(walk: range, passes_F: np.ndarray, far_F: np.ndarray, peak: int) -> int:
    furthest = peak
    for frame in walk:
        if passes_F[frame]:
            furthest = frame
        elif far_F[frame]:
            break
    return furthest
