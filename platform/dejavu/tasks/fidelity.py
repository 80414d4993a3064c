"""How close embeddings stay to Original's: the score where nobody has annotated anything.

F frames, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Cosines of frames to Original's, summed up."""

    num_frames: int
    mean: float
    min: float
    p5: float
    """Below it lie 5 % of the frames."""


@dataclass(frozen=True, slots=True)
class FidelityScore:
    """Over all frames of all clips, each frame weighing the same, and clip by clip."""

    overall: Fidelity
    by_clip: Mapping[str, Fidelity]


def frame_cosines(embeddings_FE: Array, original_FE: Array) -> Array:
    """Return [F], the cosine of each frame's embedding to Original's of the same frame, in -1..1 and float64.

    Raises:
        ValueError: The shapes differ or are not [F, E], or a row has no direction: all zero or not finite.
    """
    if embeddings_FE.shape != original_FE.shape or embeddings_FE.ndim != 2 or not embeddings_FE.size:
        raise ValueError(
            f"embeddings: got {embeddings_FE.shape} beside Original's {original_FE.shape}, expected the same [F, E]; "
            "embed both from the same transcoded clip"
        )
    # The store keeps half precision, whose squares overflow.
    ours_FE, dense_FE = embeddings_FE.astype(np.float64), original_FE.astype(np.float64)
    norms_F = np.linalg.norm(ours_FE, axis=1) * np.linalg.norm(dense_FE, axis=1)
    if not (np.isfinite(norms_F) & (norms_F > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(norms_F) & (norms_F > 0)))[0])
        raise ValueError(
            f"embeddings: got a zero or not finite embedding at frame {bad}, expected a direction; embed the clip again"
        )
    cosine_F: Array = np.clip((ours_FE * dense_FE).sum(axis=1) / norms_F, -1.0, 1.0)
    return cosine_F


def score_fidelity(cosines_by_clip: Mapping[str, Array]) -> FidelityScore:
    """Sum up cosines [F] of each clip.

    Raises:
        ValueError: There is no clip, or one without frames.
    """
    empty = [clip_id for clip_id, cosine_F in cosines_by_clip.items() if not len(cosine_F)]
    if empty or not cosines_by_clip:
        raise ValueError(
            f"fidelity: got {len(cosines_by_clip)} clips, {len(empty)} of them without frames, expected one frame or "
            "more in each; leave failed clips out"
        )
    return FidelityScore(
        overall=_summary(np.concatenate(list(cosines_by_clip.values()))),
        by_clip={clip_id: _summary(cosine_F) for clip_id, cosine_F in cosines_by_clip.items()},
    )


def _summary(cosine_F: Array) -> Fidelity:
    return Fidelity(
        num_frames=len(cosine_F),
        mean=float(cosine_F.mean()),
        min=float(cosine_F.min()),
        p5=float(np.quantile(cosine_F, 0.05)),
    )
