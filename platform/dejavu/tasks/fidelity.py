"""How close embeddings stay to Original's: the score where nobody has annotated anything.

F frames, E embedding width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


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
