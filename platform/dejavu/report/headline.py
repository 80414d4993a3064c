"""What a run comes down to: each method's best settings within the loss allowed, what dominates what, and how sure.

Pure arithmetic and words on points; every number is one of pareto.csv's, or follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

from dejavu.records import ParetoPoint
from dejavu.report.frontier import (
    GAINS,
    MAX_LOSS,
    ORIGINAL,
    Gain,
    Quality,
    best_within,
    hypervolume,
    non_dominated,
    original_quality,
    words_of,
)
from dejavu.report.style import styles_of

WORST = (1.0, 0.0)
"""Corner that the hypervolume is measured from: Original's computation, and no right answer."""
APART = 1.15
MOST_NAMED = 4
"""Settings named where none is within the loss allowed, and how much faster than the one before each has to be."""
Verdict = Literal["worse", "better", "noise", "unknown"]


@dataclass(frozen=True, slots=True)
class MethodHeadline:
    """One method against Original."""

    method: str
    num_settings: int
    best: ParetoPoint | None
    """The largest reduction of executed FLOPs within the loss allowed; None where no setting is."""
    fastest: ParetoPoint | None
    """The largest speed-up by the clock within it; None where no setting is, or none was timed."""
    hypervolume: float
    """Area that its settings dominate: FLOP reduction beyond 1 times quality."""
    num_dominated: int
    """Settings for which another point, of any method, is at least as good on both axes and better on one."""


def headlines(points: Sequence[ParetoPoint], quality: Quality, max_loss: float = MAX_LOSS) -> list[MethodHeadline]:
    """Sum up each method but Original: the fastest within the loss allowed first, then by FLOPs.

    Raises:
        ValueError: There is not exactly one Original with that quality.
    """
    best, fastest = (best_within(points, quality, gain, max_loss=max_loss) for gain in GAINS)
    beaten = {id(point) for point, by in zip(points, dominators(points, quality), strict=True) if by}
    found = []
    for method in styles_of(point.method for point in points):
        members = [point for point in points if point.method == method]
        if method == ORIGINAL:
            continue
        found.append(
            MethodHeadline(
                method=method,
                num_settings=len(members),
                best=best.get(method),
                fastest=fastest.get(method),
                hypervolume=dominated_area(members, quality),
                num_dominated=sum(id(point) in beaten for point in members),
            )
        )
    return sorted(found, key=_gained, reverse=True)


def _gained(one: MethodHeadline) -> tuple[float, float]:
    speedup = one.fastest.speedup if one.fastest else None
    reduction = one.best.flops_reduction if one.best else None
    return speedup or 0.0, reduction or 0.0


def dominated_area(points: Sequence[ParetoPoint], quality: Quality) -> float:
    """Return the hypervolume of some points in (FLOP reduction, quality) from WORST; those not placed add nothing."""
    placed = [point for point in points if point.flops_reduction is not None and getattr(point, quality) is not None]
    gains = [float(point.flops_reduction or 0) for point in placed]
    return hypervolume(gains, [float(getattr(point, quality)) for point in placed], worst=WORST)


def dominators(points: Sequence[ParetoPoint], quality: Quality) -> list[ParetoPoint | None]:
    """Name for each point the best of those that dominate it by FLOP reduction and quality; None where none does."""
    return [
        max(
            (other for other in points if _dominates(other, point, quality)),
            key=lambda other: float(getattr(other, quality)),
            default=None,
        )
        for point in points
    ]


def verdict(point: ParetoPoint, quality: Quality) -> Verdict:
    """Say whether the paired interval of the difference to Original holds 0: then it is inside the noise."""
    interval = loss_interval(point, quality)
    if interval is None:
        return "unknown"
    low, high = interval
    return "worse" if high < 0 else "better" if low > 0 else "noise"


def loss_interval(point: ParetoPoint, quality: Quality) -> tuple[float, float] | None:
    """Return the paired 95 % interval of quality minus Original's; None where there are no answers to resample."""
    return own_interval(point, f"{quality}_loss")


def own_interval(point: ParetoPoint, measure: str) -> tuple[float, float] | None:
    """Return the 95 % interval of one of the point's measures; None where it has none."""
    low, high = getattr(point, f"{measure}_ci_low", None), getattr(point, f"{measure}_ci_high", None)
    return None if low is None or high is None else (float(low), float(high))


def surely_within(
    point: ParetoPoint, points: Sequence[ParetoPoint], quality: Quality, max_loss: float = MAX_LOSS
) -> bool | None:
    """Say whether the whole interval, not the estimate alone, loses what is allowed at most; None without interval."""
    interval = loss_interval(point, quality)
    return None if interval is None else interval[0] >= -max_loss * original_quality(points, quality)


def per_cent(share: float) -> str:
    """Write a share of 1 in per cent, in as many digits as it has."""
    return f"{100 * share:g} %"


def summarise(
    points: Sequence[ParetoPoint], quality: Quality, num_questions: int, max_loss: float = MAX_LOSS
) -> list[str]:
    """Tell the outcome in sentences: what Original reaches, then the most speed and the least computation near it.

    The number of questions or captions that were scored is 0 for a dataset without answers.

    Raises:
        ValueError: There is not exactly one Original with that quality.
    """
    dense = original_quality(points, quality)
    original = next(point for point in points if point.method == ORIGINAL)
    words = words_of(points, quality)
    asked = f"{num_questions} {words.item}s about " if num_questions and words.item != "clip" else ""
    said = [
        f"Original, the dense tower that computes every token of every frame, reaches {_share(dense, quality)} "
        f"{words.name} ({words.meaning}) on {asked}{original.num_clips} test clips"
        f"{_sure(original, quality)}."
    ]
    every = headlines(points, quality, max_loss)
    limit = f"{_share((1 - max_loss) * dense, quality)} or more, that is within {per_cent(max_loss)} of Original"
    cheapest = _largest([one.best for one in every], "flops_reduction")
    if cheapest is None:
        return [*said, f"No setting of another method keeps {limit}.", *_what_loss_buys(points, quality, dense)]
    fastest = _largest([one.fastest for one in every], "speedup")
    if fastest is None or fastest.speedup is None:
        who = f"Of the settings that keep {limit}, none was timed; the one that computes least is {_name(cheapest)}"
        return [*said, f"{who}: {_fewer(cheapest)} at {_quality(cheapest, points, quality, max_loss)}."]
    if fastest.speedup > 1:
        said.append(
            f"Of the settings that keep {limit}, the fastest by the clock is {_name(fastest)}: {fastest.speedup:.2f} "
            f"times Original's speed at {_quality(fastest, points, quality, max_loss)}, for {_fewer(fastest)}."
        )
    else:
        said.append(
            f"Of the settings that keep {limit}, none is faster than Original by the clock here; {_name(fastest)} "
            f"comes closest, at {fastest.speedup:.2f} times its speed."
        )
        said += _what_loss_buys(points, quality, dense)
    if cheapest is fastest and fastest.speedup > 1:
        said.append("It is also the one that computes least.")
    else:
        told = f"{_fewer(cheapest)} at {_quality(cheapest, points, quality, max_loss)}"
        said.append(f"The one that computes least is {_name(cheapest)}: {told}.{_pace(cheapest)}")
    return said


def faster_at_a_loss(points: Sequence[ParetoPoint], quality: Quality) -> list[ParetoPoint]:
    """Return settings that no other beats in both speed and quality, best quality first, each APART times as fast."""
    timed = [point for point in points if point.speedup is not None and point.method != ORIGINAL]
    kept = non_dominated([point.speedup or 0.0 for point in timed], [float(getattr(point, quality)) for point in timed])
    found: list[ParetoPoint] = []
    speed = 1.0
    for point in sorted(compress(timed, kept), key=lambda point: point.speedup or 0.0):
        if (point.speedup or 0.0) >= APART * speed:
            found.append(point)
            speed = point.speedup or 0.0
    return found


def _what_loss_buys(points: Sequence[ParetoPoint], quality: Quality, dense: float) -> list[str]:
    faster = faster_at_a_loss(points, quality)[:MOST_NAMED]
    if not faster or not dense:
        return []
    told = ", ".join(
        f"{_name(one)} {one.speedup:.2f} times Original's speed at {_share(float(getattr(one, quality)), quality)}"
        for one in faster
    )
    allows = [loss / 100 for loss in range(1, 100) if (1 - loss / 100) * dense <= float(getattr(faster[0], quality))]
    hint = f" `--allowed-loss {allows[0]:g}` allows the first of them." if allows else ""
    return [f"What a larger loss buys by the clock: {told}.{hint}"]


def _fewer(point: ParetoPoint) -> str:
    return f"{point.flops_reduction:.2f} times fewer executed FLOPs"


def _pace(point: ParetoPoint) -> str:
    if point.speedup is None:
        return " It was not timed."
    text = f" By the clock it runs at {point.speedup:.2f} times Original's speed"
    return f"{text}." if point.speedup > 1 else f"{text}: the work that it saves is not time saved here."


def _quality(point: ParetoPoint, points: Sequence[ParetoPoint], quality: Quality, max_loss: float) -> str:
    dense, reached = original_quality(points, quality), float(getattr(point, quality))
    interval = loss_interval(point, quality)
    text = f"{_share(reached, quality)}, {relative_text(reached, dense)}"
    if interval is None:
        return text
    low, high = (signed(end) for end in interval)
    sure = {
        "noise": "inside the noise: not to be told from Original",
        "worse": "below Original beyond the noise",
        "better": "above Original beyond the noise",
    }[verdict(point, quality)]
    if not surely_within(point, points, quality, max_loss):
        sure += f", though losing more than {per_cent(max_loss)} is not ruled out"
    return f"{text} ({signed(reached - dense)} points, 95 % interval {low} to {high}; {sure})"


def relative_text(reached: float, dense: float) -> str:
    """Say a quality as a share of Original's lost or gained."""
    if reached == dense:
        return "equal to Original"
    if not dense:
        return "above Original's nothing"
    change = (reached - dense) / dense
    return f"{100 * abs(change):.1f} % {'below' if change < 0 else 'above'} Original"


def signed(change: float) -> str:
    """Write a difference of shares in points, with its sign and a minus that is one."""
    return f"{100 * change:+.1f}".replace("-", "−")


def _sure(point: ParetoPoint, quality: Quality) -> str:
    interval = own_interval(point, quality)
    return f", with a 95 % interval from {' to '.join(_share(end, quality) for end in interval)}" if interval else ""


def _share(value: float, quality: Quality) -> str:
    return f"{value:.4f}" if quality == "cosine_to_dense" else f"{100 * value:.1f} %"


def _name(point: ParetoPoint) -> str:
    return f"{styles_of([point.method])[point.method].name} ({point.setting})"


def _largest(points: Sequence[ParetoPoint | None], gain: Gain) -> ParetoPoint | None:
    return max((point for point in points if point), key=lambda point: float(getattr(point, gain)), default=None)


def _dominates(other: ParetoPoint, point: ParetoPoint, quality: Quality) -> bool:
    pairs = [(getattr(other, axis), getattr(point, axis)) for axis in ("flops_reduction", quality)]
    if any(theirs is None or ours is None for theirs, ours in pairs):
        return False
    return all(theirs >= ours for theirs, ours in pairs) and any(theirs > ours for theirs, ours in pairs)
