"""Retrieval with mean-pooled CLIP: which clip does a caption tell of, and which caption tells of a clip.

The head has no parameters. Shapes: F frames of a clip, C clips, T captions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dejavu.records import AnswerScore, EvalRow, Question, Recall
from dejavu.tasks.zero_shot import unit


def pool(frames_FE: ArrayLike) -> NDArray[np.float32]:
    """Return [E], of length 1: the mean of the frames' directions.

    Raises:
        ValueError: There is no frame, or the mean has no direction.
    Source: CLIP4Clip (arXiv:2104.08860), mean pooling.
    """
    wide_FE = np.asarray(frames_FE, dtype=np.float32)
    if wide_FE.ndim != 2 or not wide_FE.size:
        raise ValueError(f"frames: got {wide_FE.shape}, expected [F, E], one frame or more; embed the clip again")
    mean_E = unit(wide_FE).mean(axis=0)
    length = float(np.linalg.norm(mean_E))
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"frames: got a mean of length {length}, expected a direction; embed the clip again")
    pooled_E: NDArray[np.float32] = mean_E / length
    return pooled_E


def score_retrieval(
    captions: Sequence[Question], captions_TE: ArrayLike, clips_E: Mapping[str, NDArray[np.float32]]
) -> AnswerScore:
    """Rank all clips for each caption, and all clips' captions for each clip.

    A rank is 1 more than the number of others that fit at least as well: a tie counts against, so that embeddings that
    are all alike find nothing. Of a clip with several captions the one that fits best stands for it, its own and the
    others' alike.

    Args:
        captions: Each tells of the clip with its clip_id.
        captions_TE: Their text embeddings, of length 1, in the same order.
        clips_E: Clip id -> pooled embedding; every clip here is a candidate.

    Raises:
        ValueError: There is no caption, one stands twice, or its clip is not among the candidates.
    """
    text_TE = np.asarray(captions_TE, dtype=np.float32)
    names = sorted(clips_E)
    column = {name: index for index, name in enumerate(names)}
    ids = {caption.question_id for caption in captions}
    strangers = sorted({caption.clip_id for caption in captions} - column.keys())
    if not captions or len(ids) != len(captions) or len(text_TE) != len(captions) or strangers:
        raise ValueError(
            f"retrieval: got {len(captions)} captions of {len(ids)} ids, {len(text_TE)} embeddings, and "
            f"{len(strangers)} captions of other clips, expected each once with its clip; leave a clip that failed out "
            "for every method alike"
        )
    clip_TC = text_TE @ np.stack([clips_E[name] for name in names]).T
    own_T = np.array([column[caption.clip_id] for caption in captions])
    rank_T = _ranks(clip_TC, own_T)
    # Of each clip's captions the best for every clip: [captioned clip, clip].
    told = np.unique(own_T)
    best_DC = np.stack([clip_TC[own_T == clip].max(axis=0) for clip in told])
    rank_D = _ranks(best_DC[:, told].T, np.arange(len(told)))
    rows = tuple(
        EvalRow(question_id=caption.question_id, clip_id=caption.clip_id, correct=bool(rank == 1))
        for caption, rank in zip(captions, rank_T, strict=True)
    )
    return AnswerScore(
        accuracy=fmean(row.correct for row in rows),
        rows=rows,
        text_to_video=_recall(rank_T),
        video_to_text=_recall(rank_D),
    )


def _ranks(scores_XC: NDArray[np.float32], own_X: NDArray[np.integer]) -> NDArray[np.int64]:
    own_X1 = scores_XC[np.arange(len(own_X)), own_X][:, None]
    ranks_X: NDArray[np.int64] = (scores_XC >= own_X1).sum(axis=1)  # its own is one of them
    return ranks_X


def _recall(ranks: NDArray[np.int64]) -> Recall:
    shares = [float((ranks <= most).mean()) for most in (1, 5, 10)]
    return Recall(at_1=shares[0], at_5=shares[1], at_10=shares[2], median_rank=float(np.median(ranks)))
