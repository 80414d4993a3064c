"""Which settings are worth choosing: nothing else is both cheaper and better. Pure arithmetic on points.

Everything here is "larger is better" on both axes: gain (a FLOP reduction or a speed-up) and quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dejavu.records import ParetoPoint

Quality = Literal["acc_gqa", "accuracy", "agreement", "cosine_to_dense"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)
"""The strictest first."""
Gain = Literal["flops_reduction", "speedup"]
GAINS: tuple[Gain, ...] = get_args(Gain)

ORIGINAL = "original"
"""The method's name of the dense tower, which all others are compared with."""
MAX_LOSS = 0.02
"""The share of Original's quality that may be lost unless a run says otherwise; the published claim is within 2 %."""


@dataclass(frozen=True, slots=True)
class QualityWords:
    """What a measure of quality is called."""

    name: str
    meaning: str
    item: str = "question"
    """What one is counted right or wrong of."""


_WORDS: dict[Quality, QualityWords] = {
    "acc_gqa": QualityWords("Acc@GQA", "right answers, seen at the right time"),
    "accuracy": QualityWords("accuracy", "right answers"),
    "agreement": QualityWords(
        "agreement of neighbours", "of a frame's ten nearest frames of other clips, the share that stays", "frame"
    ),
    "cosine_to_dense": QualityWords("cosine to Original", "how close frame embeddings stay to Original's"),
}
_CLASS_WORDS = QualityWords("top-1 accuracy", "clips whose class a linear probe on Original's embeddings tells", "clip")
_RETRIEVAL_WORDS = QualityWords("R@1", "captions whose own video is found first", "caption")


def words_of(points: Sequence[ParetoPoint], quality: Quality) -> QualityWords:
    """Name the quality of these points: in retrieval, accuracy is the share found first; of classes, told right."""
    if quality == "accuracy" and all(point.knn_accuracy is not None for point in points):
        return _CLASS_WORDS
    if quality == "accuracy" and all(point.median_rank is not None for point in points):
        return _RETRIEVAL_WORDS
    return _WORDS[quality]


def quality_of(points: Sequence[ParetoPoint]) -> Quality:
    """Return the strictest measure that every point has.

    Acc@GQA, else accuracy or R@1, else what stays of Original: agreement of neighbours, else the mean cosine.

    Raises:
        ValueError: There is none, or no point.
    """
    for measure in QUALITIES:
        if points and all(getattr(point, measure) is not None for point in points):
            return measure
    raise ValueError(
        f"points: got {len(points)} without a measure that all of them have, expected one of {', '.join(QUALITIES)}; "
        "score all settings on the same clips"
    )


def has_agreement_beside(points: Sequence[ParetoPoint]) -> bool:
    """Say whether the points have agreement of neighbours beside answers, of which few clips have too few."""
    return quality_of(points) != "agreement" and all(point.agreement is not None for point in points)


def non_dominated(gains: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Say of each point whether no other is at least as good on both axes and better on one.

    Points equal on both axes stand or fall together.

    Raises:
        ValueError: The two differ in length.
    """
    order = sorted(zip(gains, qualities, range(len(gains)), strict=True), key=lambda point: (-point[0], -point[1]))
    kept = [False] * len(gains)
    best_quality = float("-inf")
    best_gain = float("inf")
    for gain, quality, index in order:
        if quality > best_quality:
            best_quality, best_gain = quality, gain
        kept[index] = (gain, quality) == (best_gain, best_quality)
    return kept


def hypervolume(gains: Sequence[float], qualities: Sequence[float], *, worst: tuple[float, float]) -> float:
    """Measure the area that the points dominate: one number by which two frontiers can be compared.

    `worst` is the corner (gain, quality) from which the area is measured, such as Original's gain of 1 and the quality
    of chance. Points that are not better than it on both axes add nothing.

    Returns:
        Area in units of gain times quality, at least 0.
    """
    inside = [(g, q) for g, q in zip(gains, qualities, strict=True) if g > worst[0] and q > worst[1]]
    area, reached = 0.0, worst[1]
    for gain, quality in sorted(inside, reverse=True):
        if quality > reached:  # a strip, from the largest gain down, that no earlier point covered
            area += (gain - worst[0]) * (quality - reached)
            reached = quality
    return area


def mark_frontier(
    points: Sequence[ParetoPoint], gain: Gain = "flops_reduction", quality: Quality | None = None
) -> list[ParetoPoint]:
    """Return the points of one split with `on_frontier` set, by a gain and a quality.

    The quality is the strictest measure that all points have unless given. A point without either value is not on the
    frontier.
    """
    measure = quality or quality_of(points)
    placed = [i for i, one in enumerate(points) if None not in (getattr(one, gain), getattr(one, measure))]
    gains, qualities = ([_value(points[i], name) for i in placed] for name in (gain, measure))
    marked = dict(zip(placed, non_dominated(gains, qualities), strict=True))
    return [replace(point, on_frontier=marked.get(i, False)) for i, point in enumerate(points)]


def best_within(
    points: Sequence[ParetoPoint], quality: Quality, gain: Gain, *, max_loss: float = MAX_LOSS
) -> dict[str, ParetoPoint]:
    """Choose each method's setting of the largest gain that loses at most this share of Original's quality.

    Returns:
        By method; one that has no such setting, or no measured gain, is absent.

    Raises:
        ValueError: There is not exactly one Original with that quality.
    """
    least = (1 - max_loss) * original_quality(points, quality)
    best: dict[str, ParetoPoint] = {}
    for point in points:
        reached, gained = getattr(point, quality), getattr(point, gain)
        if reached is None or gained is None or reached < least:
            continue
        if point.method not in best or gained > _value(best[point.method], gain):
            best[point.method] = point
    return best


def original_quality(points: Sequence[ParetoPoint], quality: Quality) -> float:
    """Return the quality of the one Original among the points.

    Raises:
        ValueError: There is not exactly one that has it.
    """
    values = [getattr(point, quality) for point in points if point.method == ORIGINAL]
    if len(values) != 1 or values[0] is None:
        raise ValueError(
            f"points: got {len(values)} settings of {ORIGINAL!r} with {quality} {values}, expected exactly one with a "
            "value; score Original once on each split"
        )
    return float(values[0])


def _value(point: ParetoPoint, name: Quality | Gain) -> float:
    return float(getattr(point, name))
