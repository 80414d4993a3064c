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
from reuse_models.reusevit.gate import Features, FrameId, Gate
from reuse_models.reusevit.reference import Plan, Wave, choose_sources, nearer, sources_of

ANCHOR = -1
"""A source that is the stream's anchor, not a row of the pass."""


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
    """Where the patch was last computed, and where its h, q, k, v come from: a row, its own if it is computed now."""
    num_pairs_F: Tensor
    """Comparisons with computed rows, beyond one a token with the anchor."""


def choose(boundary: int, seen: Seen, plan: Plan, gate: Gate) -> Choice:
    """Decide for all frames of the pass."""
    num_frames, num_tokens = seen.norm_FN.shape
    prefix = num_tokens - seen.codec_FA.shape[1]
    num_pairs_F = torch.zeros(num_frames, dtype=torch.int64, device=seen.norm_FN.device)

    def nearest(source_FN: Tensor, wave: Wave) -> tuple[Tensor, Tensor]:
        found = sources_of(source_FN, wave)
        return nearer([_similarity(seen, plan, wave, one_KN, num_pairs_F) for one_KN in found], found)

    def decide(wave: Wave, similarity_KA: Tensor) -> Tensor:
        features = Features(
            importance_XA=seen.importance_FN[wave.frames_K, prefix:],
            similarity_XA=similarity_KA,
            codec_XA=seen.codec_FA[wave.frames_K],
            kind=wave.kind,
            frames=[seen.frames[index] for index in wave.frames] if seen.frames else (),
        )
        return gate(boundary, features)

    source_FN = choose_sources(plan, decide, nearest, prefix)
    row_FN = torch.where(source_FN == 0, ANCHOR, plan.rows_of(source_FN))
    return Choice(source_FN != plan.own_F1, row_FN, num_pairs_F)


def _similarity(seen: Seen, plan: Plan, wave: Wave, source_KN: Tensor, num_pairs_F: Tensor) -> Tensor:
    """Compare with the sources: known already where that is the anchor."""
    frames_K = wave.frames_K
    similarity_KN = seen.to_anchor_FN[frames_K]
    if wave.kind == 0:
        # There is nothing but the anchor.
        return similarity_KN
    to_row_KN = source_KN != 0
    to_row_KN[:, : seen.norm_FN.shape[1] - seen.codec_FA.shape[1]] = False
    place_X, token_X = to_row_KN.nonzero(as_tuple=True)
    if len(place_X):
        pre_proj_XD = seen.pre_proj_FND.flatten(0, 1)
        norm_X = seen.norm_FN.flatten()
        own_X = frames_K[place_X] * seen.norm_FN.shape[1] + token_X
        other_X = plan.rows_of(source_KN, wave)[place_X, token_X]
        difference_XD = pre_proj_XD.index_select(0, own_X).sub_(pre_proj_XD.index_select(0, other_X))
        similarity_KN[place_X, token_X] = cosine_from_norms(norms(difference_XD), norm_X[own_X], norm_X[other_X])
        num_pairs_F.index_add_(0, frames_K, to_row_KN.sum(1))
    return similarity_KN
