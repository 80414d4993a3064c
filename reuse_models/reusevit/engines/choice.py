"""One boundary's choice in compacted form: who is reused, and from which row.

A *row* is frame · N + token among the frames of the pass. A patch's *source* is the row in which it was last computed,
or ANCHOR for the stream's anchor; following sources replaces copying what was remembered.

Shapes: F frames of the pass, K of them in a wave, N tokens (prefix first), A patches, X rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.reusevit.anchors import cosine_from_norms, norms
from reuse_models.reusevit.engines.group_layout import ANCHOR, GroupLayout, Wave
from reuse_models.reusevit.gate import Features, FrameId, Gate


@dataclass(frozen=True, slots=True)
class Seen:
    """What the attention of one layer leaves to decide from."""

    pre_proj_FND: Tensor
    norm_FN: Tensor
    to_anchor_FN: Tensor
    """Cosine of pre_proj with the anchor's."""
    importance_FN: Tensor
    codec_FA: Tensor
    frames: Sequence[FrameId]
    """For gates that draw by frame; may be empty."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is reused, from where."""

    reused_FN: Tensor
    """bool; False for the prefix."""
    source_FN: Tensor
    """Where the patch was last computed, and where its h, q, k, v come from: its own row if it is computed now."""
    num_pairs_F: Tensor
    """Comparisons with computed rows, beyond one a token with the anchor."""


def choose(boundary: int, seen: Seen, layout: GroupLayout, gate: Gate) -> Choice:
    """Decide for all frames of the pass, kind after kind."""
    num_frames, num_tokens = seen.norm_FN.shape
    prefix = num_tokens - seen.codec_FA.shape[1]
    rows_FN = torch.arange(num_frames * num_tokens, device=seen.norm_FN.device).view(num_frames, num_tokens)
    source_FN = torch.full_like(rows_FN, ANCHOR)
    reused_FN = torch.zeros_like(rows_FN, dtype=torch.bool)
    num_pairs_F = torch.zeros(num_frames, dtype=torch.int64, device=rows_FN.device)
    for wave in layout.waves:
        frames_K = wave.frames_K
        similarity_KN, found_KN = _nearest(seen, wave, source_FN, num_pairs_F)
        features = Features(
            importance_XA=seen.importance_FN[frames_K, prefix:],
            similarity_XA=similarity_KN[:, prefix:],
            codec_XA=seen.codec_FA[frames_K],
            kind=wave.kind,
            frames=[seen.frames[index] for index in frames_K.tolist()] if seen.frames else (),
        )
        reused_KA = gate(boundary, features) > 0.5
        reused_KN = torch.nn.functional.pad(reused_KA, (prefix, 0))
        reused_FN[frames_K] = reused_KN
        source_FN[frames_K] = torch.where(reused_KN, found_KN, rows_FN[frames_K])
    return Choice(reused_FN, source_FN, num_pairs_F)


def _nearest(seen: Seen, wave: Wave, source_FN: Tensor, num_pairs_F: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each token the best similarity, and that candidate's source."""
    if len(wave.candidates) == 1:
        # The first frame of a group has nothing but the anchor.
        return seen.to_anchor_FN[wave.frames_K], torch.full_like(source_FN[wave.frames_K], ANCHOR)
    similarities, sources = [], []
    for frame_K in wave.candidates:
        at_anchor_K1 = (frame_K == ANCHOR)[:, None]
        source_KN = torch.where(at_anchor_K1, ANCHOR, source_FN[frame_K.clamp_min(0)])
        sources.append(source_KN)
        similarities.append(_similarity(seen, wave.frames_K, source_KN, num_pairs_F))
    nearer_KN = similarities[1] > similarities[0]
    return (
        torch.where(nearer_KN, similarities[1], similarities[0]),
        torch.where(nearer_KN, sources[1], sources[0]),
    )


def _similarity(seen: Seen, frames_K: Tensor, source_KN: Tensor, num_pairs_F: Tensor) -> Tensor:
    """Compare with the sources: known already where that is the anchor."""
    similarity_KN = seen.to_anchor_FN[frames_K]
    to_row_KN = source_KN != ANCHOR
    to_row_KN[:, : seen.norm_FN.shape[1] - seen.codec_FA.shape[1]] = False
    place_X, token_X = to_row_KN.nonzero(as_tuple=True)
    if len(place_X):
        pre_proj_XD = seen.pre_proj_FND.flatten(0, 1)
        norm_X = seen.norm_FN.flatten()
        own_X = frames_K[place_X] * seen.norm_FN.shape[1] + token_X
        other_X = source_KN[place_X, token_X]
        difference_XD = pre_proj_XD.index_select(0, own_X).sub_(pre_proj_XD.index_select(0, other_X))
        similarity_KN[place_X, token_X] = cosine_from_norms(norms(difference_XD), norm_X[own_X], norm_X[other_X])
        num_pairs_F.index_add_(0, frames_K, to_row_KN.sum(1))
    return similarity_KN
