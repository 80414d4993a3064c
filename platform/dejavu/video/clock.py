"""A player's clock: seconds from the start of the container, segments of a broken clock laid end to end."""

from __future__ import annotations

from fractions import Fraction

BACK_S = Fraction(1, 2)
"""Pictures that come so much too early are out of order; more, and the clock has begun again."""
SAID_FROM_S = Fraction(1)
"""Shorter gaps are not worth a word."""
MAX_LATE_S = 48 * 3600
"""Pictures that begin later after the container's start are taken for another clock than that of the sound."""


class Clock:
    """Lays the timestamps of pictures, in display order, on a clock that neither begins again nor jumps.

    A file that was joined from several, or written by a recorder whose clock was set meanwhile, has timestamps that
    begin again or leap ahead. Players then show one segment behind the other, and so do we.
    """

    def __init__(self, origin: Fraction | None, usual: Fraction, max_gap: Fraction) -> None:
        """Start before the first picture.

        Args:
            origin: The container's start; None where it tells none, so that the first picture is the start.
            usual: What a picture lasts at the stream's average rate.
            max_gap: The longest gap between two pictures that is left as it is; all in seconds.
        """
        self.origin, self.usual, self.max_gap = origin, usual, max_gap
        self.offset = Fraction(0)
        """From told to shown."""
        self.now = Fraction(-1)
        """When the latest picture is shown; negative before the first."""
        self.step, self.lasts = usual, usual
        """From the picture before to the latest, and what that one lasts."""
        self.breaks: list[str] = []
        self.num_gaps, self.filled = 0, Fraction(0)

    def place(self, told: Fraction | None, lasts: Fraction, following: Fraction | None = None) -> Fraction:
        """Return when a picture is shown.

        Args:
            told: What its timestamp says; None where it has none.
            lasts: What its duration says.
            following: What the next picture's timestamp says, where there is one: it tells a clock that has leapt from
                a timestamp that is wrong.
        """
        shown = self._first(told) if self.now < 0 else self._next(told, following)
        self.now, self.lasts = shown, lasts
        return shown

    @property
    def remarks(self) -> list[str]:
        """What was done to the clock, a phrase each."""
        if not self.num_gaps:
            return self.breaks
        gaps = f"{self.num_gaps} gap{'s' * (self.num_gaps > 1)} of {float(self.filled):.1f} s in all without a picture"
        return [*self.breaks, f"{gaps}, filled with the picture before"]

    def _first(self, told: Fraction | None) -> Fraction:
        if told is None:
            return Fraction(0)
        self.offset = -told if self.origin is None else -self.origin
        late = told + self.offset
        if late > MAX_LATE_S:
            self.breaks.append(f"pictures begin {float(late):.1f} s after the sound: taken for another clock")
        if late < 0 or late > MAX_LATE_S:
            self.offset = -told
        return told + self.offset

    def _next(self, told: Fraction | None, following: Fraction | None) -> Fraction:
        shown = self.now + (self.lasts or self.step) if told is None else told + self.offset
        ahead = shown - self.now
        if following is not None and self.now < following + self.offset < shown - BACK_S:
            end = self.now + min(self.lasts, self.step)
            self.breaks.append(f"at {float(end):.1f} s one timestamp leaps by {float(shown - end):.1f} s: passed over")
            return end
        if ahead < -BACK_S or ahead > self.max_gap + self.step:
            end = self.now + min(self.lasts, self.step)
            how = f"{'goes back' if ahead < 0 else 'jumps'} by {float(abs(shown - end)):.1f} s"
            self.breaks.append(f"at {float(end):.1f} s the clock {how}: laid end to end")
            self.offset += end - shown
            return end
        if ahead - max(self.step, self.usual) >= SAID_FROM_S:
            self.num_gaps += 1
            self.filled += ahead - self.step
        if ahead > 0:
            self.step = ahead
        return max(shown, self.now)
