"""Similarities and addresses in shapes that follow from the sizes of the groups alone: the host is never asked.

A patch can only have been computed in the few frames that its frame may refer to, so that every similarity that may be
asked for is computed beforehand, in one go.

Shapes: S streams of the pass, F frames of the pass, N tokens (prefix first), X = F · N rows, H = S · N rows of anchors,
K frames of a wave, c codes, P pairs of frames, C rows given to a layer's products, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.reusevit.anchors import cosine_from_norms, norms
from reuse_models.reusevit.reference import NUM_CODES, Plan, Wave, nearer, sources_of


def nearest_candidate(similarity_FcN: Tensor, source_FN: Tensor, wave: Wave) -> tuple[Tensor, Tensor]:
    """Return for each token the best similarity and that candidate's source."""
    similarity_KcN, found = similarity_FcN.index_select(0, wave.frames_K), sources_of(source_FN, wave)
    return nearer([similarity_KcN.gather(1, found_KN[:, None])[:, 0] for found_KN in found], found)


def similarities(pre_proj_FND: Tensor, anchor_SND: Tensor, anchor_norm_SN: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return norm_FN, and [F, c, N]: the cosine of each frame's pre_proj with that of the anchor and of the others.

    Pairs that may not be compared hold 0 and are never read.
    """
    num_frames, num_tokens, _ = pre_proj_FND.shape
    norm_FN = norms(pre_proj_FND)
    to_anchor_FN = cosine_from_norms(
        norms(pre_proj_FND - anchor_SND[plan.slot_F]), norm_FN, anchor_norm_SN[plan.slot_F]
    )
    later_P, earlier_P = plan.pairs_2P
    difference_PN = norms(pre_proj_FND[later_P] - pre_proj_FND[earlier_P])
    to_frame_PN = cosine_from_norms(difference_PN, norm_FN[later_P], norm_FN[earlier_P])
    to_others_YN = norm_FN.new_zeros(num_frames * NUM_CODES, num_tokens).index_copy(0, plan.pair_place_P, to_frame_PN)
    to_others_FcN = to_others_YN.view(num_frames, NUM_CODES, num_tokens)
    return norm_FN, torch.cat([to_anchor_FN[:, None], to_others_FcN[:, 1:]], 1)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where rows are found."""

    computed_FN: Tensor
    """bool."""
    rows_C: Tensor
    """The computed rows, ascending; row 0 beyond them."""
    source_X: Tensor
    """Where each row was last computed, among H rows of anchors and then X rows of the pass."""
    base_X: Tensor
    """Where its h, q, k, v lie: among H rows of anchors, then X places of which computed rows fill the first."""


def addresses(source_FN: Tensor, plan: Plan, num_given: int) -> Addresses:
    """Turn codes into places; with more computed rows than `num_given`, C, the last ones get wrong places."""
    num_frames, num_tokens = source_FN.shape
    num_rows, num_anchors = num_frames * num_tokens, plan.num_streams * num_tokens
    computed_FN = source_FN == plan.own_F1
    computed_X = computed_FN.flatten()
    rank_X = computed_X.cumsum(0) - 1
    place_X = torch.where(computed_X & (rank_X < num_given), rank_X, num_given)
    every_X = torch.arange(num_rows, device=rank_X.device)
    # What is not computed meets in one place beyond those given.
    rows_C = torch.zeros(num_given + 1, dtype=torch.int64, device=rank_X.device).scatter(0, place_X, every_X)[:-1]
    stored_X = rank_X.clamp(0, num_given - 1)

    row_X = plan.rows_of(source_FN).flatten()
    anchor_X = plan.anchor_FN.flatten()
    from_anchor_X = (source_FN == 0).flatten()
    source_X = torch.where(from_anchor_X, anchor_X, num_anchors + row_X)
    base_X = torch.where(from_anchor_X, anchor_X, num_anchors + stored_X[row_X.clamp_min(0)])
    return Addresses(computed_FN, rows_C, source_X, base_X)
