"""KeyFrames(t): embed the frames that stand best for those around them, and blend the others (ours).

AdaptiveSkip looks back alone. A video that is there as a whole need not be cut where it has moved too far already: the
key frames that make all frames' distances to the nearer of their two least, at a price a key frame, are found by
dynamic programming, as in rate-distortion optimal video summaries (Li et al., IEEE Trans. Image Process., 2005), over a
window that slides. The distance is AdaptiveSkip's.

Shapes: F frames of a stream, W of a window, S the tower's side, T numbers of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reuse_models.baselines.adaptive_skip import THUMBNAIL_PX, flat_thumbnails, thumbnails
from reuse_models.baselines.blending import Blended, Decision, Shown
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import Method
from reuse_models.tower.vit import Vit

WINDOW = 32
"""Frames that are decided on together: the most that wait."""
LOOK_AHEAD = 8
"""Frames at a window's end whose key frames are not final yet, since what follows may move them."""
MOST_APART = WINDOW - LOOK_AHEAD
"""Frames from one key frame to the next, so that every window decides on some."""
BISECTIONS = 16
"""In search of a threshold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFramesConfig:
    """Embed the frames that stand best for those around them; blend the others."""

    method: ClassVar[str] = "key_frames"
    threshold: float = 0.2
    """What a key frame must save: the distances of the frames around it, summed, in units of preprocessed pixels. 0 is
    Original. What is left out at a threshold differs from video to video: see `key_thresholds`."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < np.inf:
            raise ValueError(f"threshold: got {self.threshold}, expected a number from 0 on; 0 computes every frame")

    @property
    def setting(self) -> str:
        return f"t={self.threshold:g}"

    def build(self, vit: Vit) -> Method:
        return keep_key_frames(OriginalConfig().build(vit), self.threshold)


def keep_key_frames(inner: Method, threshold: float) -> Method:
    """Return a method that passes on the frames that stand best for those around them."""
    return Blended(inner, partial(KeyFramePlan, threshold), WINDOW)


@dataclass(slots=True)
class KeyFramePlan:
    """Key frames of one stream, by windows that slide from one final key frame to the next."""

    threshold: float
    thumbnails_FT: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 3 * THUMBNAIL_PX**2), np.float32))
    """Of the last key frame, once there is one, and of the open frames behind it."""
    has_key: bool = False

    @property
    def num_open(self) -> int:
        """As `Plan` says."""
        return len(self.thumbnails_FT) - self.has_key

    def decide(self, pixels_F3SS: Tensor, *, ended: bool) -> Decision:
        """As `Plan` says: whole windows, and what is left when the stream ends."""
        return self.decide_on(thumbnails(pixels_F3SS).flatten(1).numpy(), ended=ended)

    def decide_on(self, new_FT: NDArray[np.float32], *, ended: bool) -> Decision:
        """Decide on frames of which only thumbnails are needed."""
        self.thumbnails_FT = np.concatenate([self.thumbnails_FT, new_FT])
        keys: list[int] = []
        shown: list[Shown] = []
        while len(self.thumbnails_FT) >= WINDOW or (ended and self.num_open):
            distance_WW = distances(self.thumbnails_FT[:WINDOW])
            window_keys, end = choose_key_frames(distance_WW, self.threshold), len(distance_WW)
            if end == WINDOW:
                window_keys = [frame for frame in window_keys if frame <= MOST_APART]
                end = window_keys[-1] + 1
            known = int(self.has_key)  # the first frame, which is shown already
            places = _places(distance_WW[:end, :end], window_keys, len(keys) + 1 - known)
            keys += [len(shown) + frame - known for frame in window_keys[known:]]
            shown += places[known:]
            left_FT = self.thumbnails_FT[end:]
            self.thumbnails_FT = np.concatenate([self.thumbnails_FT[window_keys[-1] :][:1], left_FT])
            self.has_key = True
        return Decision(keys, shown)


def distances(thumbnails_FT: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [F, F], mean absolute differences; what is no number is infinitely far from everything."""
    flat_FT = thumbnails_FT.astype(np.float64)
    distance_FF = np.stack([np.abs(flat_FT - row_T).mean(1) for row_T in flat_FT])
    return np.where(np.isnan(distance_FF), np.inf, distance_FF)


def choose_key_frames(distance_FF: NDArray[np.float64], threshold: float) -> list[int]:
    """Return the key frames, the first frame and others at most MOST_APART apart, of least cost; of equals, the later.

    The cost is the threshold for each key frame, and each other frame's distance to the nearer of the two around it, or
    to the last one.
    """
    num_frames = len(distance_FF)
    frame = np.arange(num_frames)
    is_between_FFF = (frame[:, None, None] < frame) & (frame < frame[None, :, None])
    nearer_FFF = np.minimum(distance_FF[:, None], distance_FF[None])
    between_FF = np.where(is_between_FFF, nearer_FFF, 0.0).sum(2)
    behind_F = np.triu(distance_FF, 1).sum(1)
    steps_FF = np.concatenate([between_FF + threshold, behind_F[:, None]], axis=1)
    """From a key frame to the next one, or to the end."""
    cost, before = [0.0], [0]
    for end in range(1, num_frames + 1):
        first = max(0, end - MOST_APART)
        costs = np.asarray(cost[first:]) + steps_FF[first:end, end]
        before.append(end - 1 - int(np.argmin(costs[::-1])))
        cost.append(float(costs[before[-1] - first]))
    found = [before[num_frames]]
    while found[-1] > 0:
        found.append(before[found[-1]])
    return found[::-1]


def _places(distance_FF: NDArray[np.float64], keys: Sequence[int], first_place: int) -> list[Shown]:
    """Return what each frame shows.

    Of two key frames, one that is half as far away counts four times.
    """
    found: list[Shown] = []
    for place, (key, end) in enumerate(zip(keys, [*keys[1:], len(distance_FF)], strict=True), first_place):
        found.append(Shown(place, True))
        for frame in range(key + 1, end):
            to_key = distance_FF[frame, key]
            to_end = distance_FF[frame, end] if end < len(distance_FF) else np.inf
            share = 0.0 if to_key == 0 or to_end == np.inf else 1 / (1 + (to_end / to_key) ** 2)
            found.append(Shown(place + float(share), False))
    return found


@torch.no_grad()
def key_thresholds(_: Vit, clips_F3HW: Iterable[Tensor], shares: Sequence[float]) -> list[float]:
    """Return, for each share, about the least threshold at which no more than this share of all frames is computed.

    So a sweep finds its thresholds on any video, whatever the tower. Where so few are not possible, it is a threshold
    at which as few as possible are.

    Args:
        clips_F3HW: Clips, normalised for the tower.
        shares: 0..1.

    Raises:
        ValueError: No clip has two frames, or a share is outside 0..1.
    """
    clips_FT = [flat_FT.numpy() for flat_FT in flat_thumbnails(clips_F3HW, shares)]
    num_frames = sum(map(len, clips_FT))

    def num_computed(threshold: float) -> int:
        return sum(len(KeyFramePlan(threshold).decide_on(clip_FT, ended=True).keys) for clip_FT in clips_FT)

    farthest = max(float(np.ptp(clip_FT, axis=0).mean()) for clip_FT in clips_FT)
    beyond = WINDOW * farthest or 0.1  # no key frame saves more; where nothing moves, whatever it is
    least = num_computed(beyond)
    found = []
    for share in shares:
        low, high = 0.0, beyond
        for _step in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if num_computed(middle) <= max(share * num_frames, least) else (middle, high)
        found.append(high)
    return found
