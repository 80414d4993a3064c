"""When a dense frame begins a new GOP before its time (ours): reuse has strayed, or the scene was cut.

Both are decided between groups, from what is there anyway: the similarities that decisions are made from, and the
codec grid. Neither costs a product.

Shapes: X frames of a gate's call, A patches, P patches a side.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from reuse_models.reusevit.codec_net import LAST_CLASS
from reuse_models.reusevit.gate import Features, FrameId, Gate

Over = Literal["group", "gop"]
OVERS: tuple[Over, ...] = get_args(Over)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveRefresh:
    """Thresholds; with both None no GOP ends before its time."""

    error: float | None = None
    """A GOP ends with the group in which the estimate reaches this."""
    over: Over = "gop"
    """`group`: the mean estimate of the group's frames; `gop`: the sum over all frames since the dense one."""
    cut: float | None = None
    """A frame with this share of intra macroblocks, 0..1, is computed densely. So is a key frame."""

    def __post_init__(self) -> None:
        if self.over not in OVERS:
            raise ValueError(f"refresh over: got {self.over!r}, expected one of {', '.join(OVERS)}; choose one")
        if self.error is not None and not self.error > 0:
            raise ValueError(f"refresh error: got {self.error}, expected a number above 0; pass none to leave it out")
        if self.cut is not None and not 0 < self.cut <= 1:
            raise ValueError(f"refresh cut: got {self.cut}, expected a share in 0..1; pass none to leave it out")

    def estimate(self, before: float, errors: Sequence[float]) -> float:
        """Return the estimate after a group whose frames' errors are given; it was `before` after the last one."""
        return before + sum(errors) if self.over == "gop" else sum(errors) / len(errors)

    def ends(self, estimate: float) -> bool:
        """Whether the GOP ends here."""
        return self.error is not None and estimate >= self.error

    def are_cuts(self, codec_F4PP: Tensor) -> list[bool]:
        """Say of each frame whether its codec grid shows a cut."""
        if self.cut is None:
            return [False] * len(codec_F4PP)
        shares_F = (codec_F4PP[:, 0] >= LAST_CLASS).float().mean(dim=(1, 2))
        return [share >= self.cut for share in shares_F.tolist()]


class ErrorMeter:
    """A gate that passes decisions on and notes what they neglect.

    A frame's error is the mean over boundaries and patches of 1 - similarity to the reference, where the patch is
    reused; what is computed counts as 0.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._noted = threading.local()
        """A pass runs in one thread, and several threads share a method."""

    def __call__(self, boundary: int, features: Features) -> Tensor:
        g_XA = self.gate(boundary, features)
        changed_XA = (1 - features.similarity_XA.detach()).clamp_min(0)
        self._rows().append((features.frames, (g_XA.detach() * changed_XA).mean(dim=-1)))
        return g_XA

    def take(self, num_boundaries: int) -> dict[FrameId, float]:
        """Return the error of each frame since the last call of this thread, and forget them."""
        rows = self._rows()
        errors: dict[FrameId, float] = {}
        if rows:
            noted = torch.cat([errors_X for _, errors_X in rows]).tolist()
            frames = [frame for frames, _ in rows for frame in frames]
            for frame, error in zip(frames, noted, strict=True):
                errors[frame] = errors.get(frame, 0.0) + error / num_boundaries
            rows.clear()
        return errors

    def _rows(self) -> list[tuple[Sequence[FrameId], Tensor]]:
        if not hasattr(self._noted, "rows"):
            self._noted.rows = []
        rows: list[tuple[Sequence[FrameId], Tensor]] = self._noted.rows
        return rows
