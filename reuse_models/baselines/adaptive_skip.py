"""AdaptiveSkip(t): embed a frame once its pixels are t away from those last embedded. What practitioners do first.

The distance is the mean absolute difference of preprocessed pixels, scaled down to the thumbnail that image hashes are
made of: noise and shaking count for little, and little is kept of a stream.

Shapes: B streams, F frames of a stream, T the thumbnail's side, E embedding width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.frame_skip import Skip
from reuse_models.method import Chunk, Method
from reuse_models.tower.vit import Vit

THUMBNAIL_PX = 8
"""On real clips, coarse ones find the frames that matter better than whole pictures do (docs/log.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveSkipConfig:
    """Compute a frame that has moved away from the last computed one, else let that one stand for it."""

    method: ClassVar[str] = "adaptive_skip"
    threshold: float = 0.2
    """In units of preprocessed pixels: 0.2 of CLIP's are some 13 of 255 levels. 0 is Original. What is skipped at a
    threshold differs from video to video: see `thresholds_for`."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: got {self.threshold}, expected 0 or more; 0 computes every frame")

    @property
    def setting(self) -> str:
        return f"t={self.threshold:g}"

    def build(self, vit: Vit) -> Method:
        return Skip(vit, nothing_computed, partial(find_moved, threshold=self.threshold))


def nothing_computed(num_streams: int) -> Tensor:
    """Return [B, 3, T, T], the thumbnails of streams that have no computed frame, on the CPU, where it is decided."""
    return torch.full((num_streams, 3, THUMBNAIL_PX, THUMBNAIL_PX), torch.nan)


def find_moved(chunk: Chunk, computed_B3TT: Tensor, threshold: float) -> list[list[bool]]:
    """Return, per stream and frame, whether it has moved a threshold away from the last one that had.

    The threshold is a mean absolute difference of pixels; each stream's last such thumbnail is replaced in place.
    """
    found = []
    for stream, pixels_F3HW in enumerate(chunk.pixels):
        of_stream = []
        for thumbnail_3TT in thumbnails(pixels_F3HW):
            # Not "at least t": a distance that is not a number, such as a first frame's, must be computed.
            moved = not (thumbnail_3TT - computed_B3TT[stream]).abs().mean() < threshold
            if moved:
                computed_B3TT[stream] = thumbnail_3TT
            of_stream.append(moved)
        found.append(of_stream)
    return found


def thumbnails(pixels_F3HW: Tensor) -> Tensor:
    """Return [F, 3, T, T] float32 on the CPU: means of areas."""
    return F.adaptive_avg_pool2d(pixels_F3HW.float(), THUMBNAIL_PX).cpu()


def flat_thumbnails(clips_F3HW: Iterable[Tensor], shares: Sequence[float]) -> list[Tensor]:
    """Return the thumbnails [F, 3 T T] of clips from which the thresholds for some shares can follow.

    Raises:
        ValueError: No clip has two frames, or a share is outside 0..1.
    """
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares: got {list(shares)}, expected 0..1; divide percentages by 100")
    found = [thumbnails(pixels_F3HW).flatten(1) for pixels_F3HW in clips_F3HW if len(pixels_F3HW)]
    if all(len(flat_FX) < 2 for flat_FX in found):
        raise ValueError("clips: got none of two frames or more, expected at least one; pass longer clips")
    return found


@torch.no_grad()
def thresholds_for(clips_F3HW: Iterable[Tensor], shares: Sequence[float]) -> list[float]:
    """Return, for each share, the least threshold found at which no more than this share of all frames is computed.

    So a sweep finds its thresholds on any video. The first frame of a clip is always computed: where that is more than
    the share, it is the threshold at which nothing else is.

    Args:
        clips_F3HW: Clips, normalised for the tower.
        shares: 0..1.

    Raises:
        ValueError: No clip has two frames, or a share is outside 0..1.
    """
    clips_FX = flat_thumbnails(clips_F3HW, shares)
    distances_FF = [(torch.cdist(flat_FX, flat_FX, p=1) / flat_FX.shape[1]).tolist() for flat_FX in clips_FX]
    num_frames = sum(map(len, distances_FF))
    levels = sorted({distance for one in distances_FF for distance_F in one for distance in distance_F})
    levels.append(2 * levels[-1] or 0.1)  # beyond any distance: where nothing moves, whatever it is
    found = []
    for share in shares:
        most = max(share * num_frames, len(distances_FF))
        enough = bisect_left(levels, True, key=lambda level: _num_computed(distances_FF, level) <= most)
        # Halfway to the next smaller distance: the same frames, and rounding decides nothing.
        found.append((levels[max(0, enough - 1)] + levels[enough]) / 2)
    return found


def skip_thresholds(_: Vit, clips_F3HW: Iterable[Tensor], shares: Sequence[float]) -> list[float]:
    """Return the thresholds at which these shares of the frames are computed, whatever the tower."""
    return thresholds_for(clips_F3HW, shares)


def _num_computed(distances_FF: Sequence[list[list[float]]], threshold: float) -> int:
    num_computed = 0
    for one_FF in distances_FF:
        last = None
        for frame, distance_F in enumerate(one_FF):
            if last is None or distance_F[last] >= threshold:
                last, num_computed = frame, num_computed + 1
    return num_computed
