"""ReuseViT inference for a GPU: a layer's products take a given number of rows, and no layer waits for the host.

`compacted` asks in every layer how many tokens are computed. Here that number is guessed (given_rows.py): computed rows
are found by a prefix sum and gathered, and rows beyond them are computed for nothing.

A layer's step:

1. *Fill and attend*: q, k, v of a row are what they are at its base plus a correction. Bases are the anchors and the
   computed rows, side by side in one pool, so that one gather and one product fill all rows. A computed row is its own
   source: the difference that its correction is made from is exactly 0.
2. *Choose* among similarities that are all computed beforehand, in one go: a patch can only have been computed in the
   few frames that its frame may refer to. Shapes follow from the sizes of the groups alone.
3. *Compute* the given rows into the pool, and note bases and hidden units of corrections for the next step.

What is computed is what `compacted` computes, to rounding. Of the corrections' first layers it takes the difference of
the products, not the product of the differences: one reads each row once, the other gathers rows of width D twice.

Shapes: S streams of the pass, F frames of the pass, K of a block, N tokens (prefix first), A patches, L layers,
b = L - 1 boundaries, D width, C rows given, X = F · N rows, H = S · N rows of anchors, R rank of a correction, Q ranks
of all corrections side by side (h, q, k, v; before the last layer k, v), p parts, h heads, E embedding width, c codes,
P pairs of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reuse_models.reusevit.addon import CORRECTED, ReusePolicy
from reuse_models.reusevit.anchors import Anchors, cosine_from_norms, norms, tensors_of
from reuse_models.reusevit.engines.cuda_graphs import Fused
from reuse_models.reusevit.engines.given_rows import GivenRows, GivenRun, Places
from reuse_models.reusevit.engines.workspace import as_rows
from reuse_models.reusevit.gate import Features
from reuse_models.reusevit.reference import NUM_CODES, Pass, Plan, Wave, nearer, note_sources, sources_of
from reuse_models.tower.vit import Vit

BLOCK_BYTES = 24 * 2**20
"""About half of a large GPU's cache: the q, k, v of a block are restored, attended to and forgotten within it."""


class FixedPlaces(Places):
    """The memory that the steps of passes of up to `num_streams` streams work in, and their recordings."""

    def __init__(self, vit: Vit, policy: ReusePolicy, num_streams: int, records: bool) -> None:
        super().__init__(vit, num_streams, records)
        shape, like = vit.shape, vit.position
        num_tokens, width = shape.num_tokens, shape.width
        pool_rows = num_streams * num_tokens + self.num_rows
        self.pool_h_XD = like.new_zeros(pool_rows, width)
        self.pool_projected_XC = like.new_zeros(pool_rows, 3 * width)
        self.block_frames = self.num_frames
        if policy.reference_state == "anchor":
            frame_bytes = 3 * num_tokens * width * like.element_size()
            self.block_frames = min(self.num_frames, max(1, BLOCK_BYTES // frame_bytes))
        self.filled_XC = like.new_zeros(self.block_frames * num_tokens, 3 * width)
        self.base_X = torch.zeros(self.num_rows, dtype=torch.int64, device=like.device)
        self.hidden_XQ = like.new_zeros(self.num_rows, len(CORRECTED) * policy.addon.shape.restoration_rank)
        self.saved: list[Tensor] = []
        """Anchors as they were before a call that may have to be done again."""

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *self.saved]


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


class FixedCapacity(GivenRows[FixedPlaces]):
    """The engine of plain steps."""

    def __init__(self, vit: Vit, policy: ReusePolicy) -> None:
        super().__init__(vit, policy)
        device = vit.position.device
        on_gpu = device.type == "cuda"
        self.similarities = Fused(similarities, compiled=on_gpu)
        self.nearest = Fused(nearest_candidate, compiled=on_gpu)
        self.addresses = Fused(addresses, compiled=on_gpu)
        self.hidden = Fused(hidden_units, compiled=on_gpu)
        self.own_head_hh = torch.eye(vit.shape.num_heads, device=device, dtype=vit.position.dtype)

    def new_places(self, num_streams: int, streams_per_pass: int) -> FixedPlaces:
        return FixedPlaces(self.vit, self.policy, min(num_streams, streams_per_pass), self.records)

    def save(self, anchors: Anchors, places: FixedPlaces) -> None:
        tensors = tensors_of(anchors)
        if not places.saved:
            with torch.inference_mode(False):
                places.saved = [torch.empty_like(x) for x in tensors]
        places.recorded.run("save", partial(_copy, tensors, places.saved))

    def restore(self, anchors: Anchors, places: FixedPlaces) -> None:
        _copy(places.saved, tensors_of(anchors))

    def steps(self, anchors: Anchors, places: FixedPlaces, plan: Plan, groups: Pass) -> FixedRun:
        return FixedRun(self, anchors, places, plan, groups)


class FixedRun(GivenRun[FixedPlaces]):
    """One group of each stream on its way through the layers: views of fixed memory, and the steps."""

    engine: FixedCapacity

    def __init__(self, engine: FixedCapacity, anchors: Anchors, places: FixedPlaces, plan: Plan, groups: Pass) -> None:
        super().__init__(engine, anchors, places, plan, groups)
        self.num_anchors = plan.num_streams * self.num_tokens
        self.base_X = places.base_X[: self.num_rows]
        # The pool: anchors, and places of computed rows.
        first, second = self.num_anchors, self.num_anchors + self.num_rows
        self.anchors_h_XD, self.stored_h_XD = places.pool_h_XD[:first], places.pool_h_XD[first:second]
        self.filled_XC = places.filled_XC[: self.num_rows]
        frames_at_once = places.block_frames
        self.blocks = [
            slice(start, min(start + frames_at_once, plan.num_frames))
            for start in range(0, plan.num_frames, frames_at_once)
        ]

    # The steps.

    def enter(self) -> None:
        """The tower's input, as if all rows had just been computed, and the scores of the codec net."""
        num_frames = self.plan.num_frames
        self.stored_h_XD.copy_(as_rows(self.vit.embed(self.places.pixels_F3HW[:num_frames])))
        scores_FPP = self.addon.codec_net(self.places.history_F4TPP[:num_frames])
        self.places.codec_FA[:num_frames].copy_(scores_FPP.flatten(1))

    def layer(self, boundary: int, num_given: int) -> None:
        pre_proj, importance = [], []
        for block in self.blocks:
            projected_KNC = self._filled(boundary - 1, block)
            q_KhNd, k_KhNd, v_KhNd = self.vit.split_heads(projected_KNC)
            pre_proj.append(self.vit.attend(q_KhNd, k_KhNd, v_KhNd))
            importance.append(self._importance(projected_KNC, q_KhNd, k_KhNd))
        self._move_on(boundary - 1)
        pre_proj_FND, importance_FN = _joined(pre_proj), _joined(importance)

        at = self.anchors[boundary]
        anchor_SND = at.pre_proj_BND.index_select(0, self.streams_S)
        anchor_norm_SN = at.norm_BN.index_select(0, self.streams_S)
        norm_FN, similarity_FcN = self.engine.similarities(pre_proj_FND, anchor_SND, anchor_norm_SN, self.plan)
        source_FN = torch.zeros_like(self.plan.anchor_FN)
        for wave in self.plan.waves:
            similarity_KN, found_KN = self.engine.nearest(similarity_FcN, source_FN, wave)
            g_KA = self._decide(boundary, wave, importance_FN, similarity_KN[:, self.prefix :])
            note_sources(source_FN, wave, g_KA, found_KN)
        place = self.engine.addresses(source_FN, self.plan, num_given)
        self.places.reuse_FbN[: self.plan.num_frames, boundary].copy_(place.computed_FN.logical_not())

        self._compute(boundary, place, as_rows(pre_proj_FND))
        down_QD = self.down(boundary)
        if self.rank:
            anchor_HQ = as_rows(anchor_SND) @ down_QD.mT
            own_XQ = as_rows(pre_proj_FND) @ down_QD.mT
            self._hidden(boundary).copy_(self.engine.hidden(own_XQ, anchor_HQ, place.source_X))
        self.base_X.copy_(place.base_X)
        # pre_proj of the anchor stays that of the frame in which the patch was last computed.
        handed_S = self.plan.handed_S
        computed_SN = place.computed_FN.index_select(0, handed_S)
        moved_SND = torch.where(computed_SN[..., None], pre_proj_FND.index_select(0, handed_S), anchor_SND)
        at.pre_proj_BND.index_copy_(0, self.streams_S, moved_SND)
        moved_SN = torch.where(computed_SN, norm_FN.index_select(0, handed_S), anchor_norm_SN)
        at.norm_BN.index_copy_(0, self.streams_S, moved_SN)

    def leave(self) -> None:
        """The last layer, for CLS alone where there is one."""
        vit, pre_proj = self.vit, []
        if vit.shape.has_cls:
            h_FMD = self._stored_h(self.base_X[:: self.num_tokens])[:, None]
            (query_Fh1d,) = vit.split_heads(vit.query(self.last, h_FMD))
        for block in self.blocks:
            *query, key_KhNd, value_KhNd = vit.split_heads(self._filled(self.last - 1, block))
            query_KhMd = query[0] if query else query_Fh1d[block]
            pre_proj.append(vit.attend(query_KhMd, key_KhNd, value_KhNd))
        self._move_on(self.last - 1)
        if not vit.shape.has_cls:
            every_X = torch.arange(self.num_rows, device=self.base_X.device)
            h_FMD = self._h_of(self.last - 1, every_X).unflatten(0, (-1, self.num_tokens))
        embeddings_FE = vit.head(vit.close(self.last, h_FMD, _joined(pre_proj)))
        self.places.embeddings_FE[: self.plan.num_frames].copy_(embeddings_FE)

    # Fill and attend.

    def _filled(self, held: int, block: slice) -> Tensor:
        """Return [K, N, C] of a block, the next attention's input, from what boundary `held` left."""
        rows = slice(block.start * self.num_tokens, block.stop * self.num_tokens)
        if held < 0:
            first = self.vit.layer(0)
            out_XC = self.filled_XC[: rows.stop - rows.start]
            normed_XD = self.vit.norm1(0, self.stored_h_XD[rows])
            torch.addmm(first.qkv_bias, normed_XD, first.qkv_weight.mT, out=out_XC)
        else:
            channels = self.num_parts(held) * self.width
            pool_XC = self.places.pool_projected_XC[:, :channels]
            hidden_XQ = self._hidden(held)[:, -self.num_parts(held) * self.rank :]
            out_XC = self.filled_XC[: rows.stop - rows.start, :channels]
            torch.index_select(pool_XC, 0, self.base_X[rows], out=out_XC)
            ups_pDR = self.addon.restoration(held).up_4DR[-self.num_parts(held) :]
            self._correct(out_XC, hidden_XQ[rows], ups_pDR)
        projected_KNC: Tensor = out_XC.unflatten(0, (-1, self.num_tokens))
        return projected_KNC

    def _correct(self, x_XC: Tensor, hidden_XQ: Tensor, ups_pDR: Tensor) -> None:
        """Add the corrections of p parts side by side."""
        if self.rank:
            parts = len(ups_pDR)
            x_pXD = x_XC.unflatten(1, (parts, self.width)).transpose(0, 1)
            x_pXD.baddbmm_(hidden_XQ.unflatten(1, (parts, self.rank)).transpose(0, 1), ups_pDR.mT)

    def keys_weighed(self) -> int:
        shape = self.vit.shape
        if not shape.has_cls:
            return shape.num_tokens
        return shape.num_heads if shape.rope_theta is None else 1

    def _importance(self, projected_KNC: Tensor, q_KhNd: Tensor, k_KhNd: Tensor) -> Tensor:
        """Return [K, N]: the attention that each token receives, summed over heads.

        From CLS, one product a frame for all heads, with each head's query in a column of its own: k is read where it
        lies, if it lies there as attention wants it.
        """
        shape = self.vit.shape
        if not shape.has_cls or shape.rope_theta is not None:
            return self.vit.importance(q_KhNd, k_KhNd)
        query_KhD = projected_KNC[:, 0, : self.width].unflatten(1, (shape.num_heads, shape.head_dim))
        query_KDh = (query_KhD[..., None] * self.engine.own_head_hh[:, None]).flatten(1, 2)
        scores_KNh = torch.bmm(projected_KNC[..., self.width : 2 * self.width], query_KDh * shape.head_dim**-0.5)
        importance_KN: Tensor = scores_KNh.softmax(1).sum(-1)
        return importance_KN

    def _move_on(self, held: int) -> None:
        """Hand each group's first computed frame on as its stream's anchor: as remembered, or as filled."""
        if held < 0:
            return
        at, handed_H = self.anchors[held], self.plan.handed_rows_H
        channels = self.num_parts(held) * self.width
        base_H = self.base_X.index_select(0, handed_H)
        if self.reference_state == "anchor":
            projected_HC = self.places.pool_projected_XC[:, :channels].index_select(0, base_H)
        else:
            projected_HC = self.filled_XC[:, :channels].index_select(0, handed_H)
        by_stream = (self.plan.num_streams, self.num_tokens)
        at.projected_BNC.index_copy_(0, self.streams_S, projected_HC.unflatten(0, by_stream))
        if at.h_BND is not None:
            h_HD = self._stored_h(base_H) if self.reference_state == "anchor" else self._h_of(held, handed_H)
            at.h_BND.index_copy_(0, self.streams_S, h_HD.unflatten(0, by_stream))

    # Choose.

    def _decide(self, boundary: int, wave: Wave, importance_FN: Tensor, similarity_KA: Tensor) -> Tensor:
        frames_K = wave.frames_K
        if self.engine.masks_RbA is not None:
            return self.engine.masks_RbA[:, boundary].index_select(0, self.places.draws_F.index_select(0, frames_K))
        features = Features(
            importance_XA=importance_FN.index_select(0, frames_K)[:, self.prefix :],
            similarity_XA=similarity_KA,
            codec_XA=self.places.codec_FA.index_select(0, frames_K),
            kind=wave.kind,
            frames=[self.frames[index] for index in wave.frames] if self.frames else (),
        )
        return self.engine.policy.gate(boundary, features)

    # Compute.

    def _compute(self, boundary: int, place: Addresses, pre_proj_XD: Tensor) -> None:
        """Put the given rows through the layer and into the pool, and the anchors beside them."""
        vit, at, num_given = self.vit, self.anchors[boundary], len(place.rows_C)
        # Before the pool is written to.
        h_CD = self._h_of(boundary - 1, place.rows_C)
        out_CD = self.stored_h_XD[:num_given]
        hidden_CM = h_CD.new_empty(num_given, vit.shape.fc1_width)
        vit.close_into(boundary, h_CD, pre_proj_XD.index_select(0, place.rows_C), hidden_CM, out_CD)
        channels = self.num_parts(boundary) * self.width
        following = vit.layer(boundary + 1)
        weight_CD, bias_C = following.qkv_weight[-channels:], following.qkv_bias[-channels:]
        pool_XC = self.places.pool_projected_XC[:, :channels]
        stored_CC = pool_XC[self.num_anchors : self.num_anchors + num_given]
        torch.addmm(bias_C, vit.norm1(boundary + 1, out_CD), weight_CD.mT, out=stored_CC)
        by_stream = (self.plan.num_streams, self.num_tokens)
        anchors_SNC = pool_XC[: self.num_anchors].unflatten(0, by_stream)
        torch.index_select(at.projected_BNC, 0, self.streams_S, out=anchors_SNC)
        if at.h_BND is not None:
            torch.index_select(at.h_BND, 0, self.streams_S, out=self.anchors_h_XD.unflatten(0, by_stream))

    def _h_of(self, held: int, rows_X: Tensor) -> Tensor:
        """Return the input h of the next layer for some rows, restored where they are reused."""
        if held < 0:
            return self.stored_h_XD.index_select(0, rows_X)
        h_XD = self._stored_h(self.base_X.index_select(0, rows_X))
        self._correct(
            h_XD, self._hidden(held)[:, : self.rank].index_select(0, rows_X), self.addon.restoration(held).up_4DR[:1]
        )
        return h_XD

    def _stored_h(self, base_X: Tensor) -> Tensor:
        return self.places.pool_h_XD.index_select(0, base_X)

    def _hidden(self, boundary: int) -> Tensor:
        return self.places.hidden_XQ[: self.num_rows, : self.num_ranks(boundary)]


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


def hidden_units(own_XQ: Tensor, anchor_HQ: Tensor, source_X: Tensor) -> Tensor:
    """Return the corrections' hidden units: exactly 0 for a row that is its own source."""
    return torch.relu(own_XQ - torch.cat([anchor_HQ, own_XQ])[source_X])


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
