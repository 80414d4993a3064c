"""ReuseViT inference: only computed tokens go through the tower's products. Equal to `masked` to rounding.

A pass takes the next group of each of S streams through all layers together. A layer has three steps:

1. *Fill and attend*, block by block (a frame of a large tower): the block's q, k, v are restored from its stream's
   anchors, all rows in one product a tensor, computed rows are written over them, attention runs while they are still
   in cache, and they are forgotten: nothing but pre_proj and what the restoration needs is kept.
2. *Choose*, wave after wave, which needs nothing but pre_proj. Following sources, the rows in which patches were last
   computed, replaces copying what was remembered.
3. *Compute* the computed tokens of all streams through dense products. Of the layer's input h these tokens alone are
   needed, so that h is restored for them alone.

A group's frames meet their references inside a layer; what outlives the pass is the anchors (anchors.py). One file: the
three steps hand each other rows whose places all of them must know.

Shapes: S streams of the pass, F frames of the pass, K of a block or wave, N tokens (prefix first), A patches, L layers,
b = L - 1 boundaries, D width, C channels of a projection, p of its parts q, k, v, E embedding width, X rows (frame · N
+ token), R rank of a correction, Q ranks of all parts side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.reusevit.addon import CORRECTED, ReusePolicy
from reuse_models.reusevit.anchors import Anchors, cosine_from_norms, norms
from reuse_models.reusevit.engines.workspace import ROWS_PER_PRODUCT, Workspace, as_rows
from reuse_models.reusevit.gate import Features
from reuse_models.reusevit.reference import Pass, PassResult, Wave, nearer, note_sources, plan_of, sources_of
from reuse_models.tower.vit import Vit

RESTORE_ALL_FROM = 0.5
"""Share of reused tokens from which restoring every row beats gathering the reused ones."""
ANCHOR = -1
"""A source that is the stream's anchor, not a row of the pass."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """Who is reused at a boundary, from where."""

    reused_FN: Tensor
    """bool; False for the prefix."""
    source_FN: Tensor
    """Where the patch was last computed, and where its h, q, k, v come from: a row, its own if it is computed now."""
    num_pairs_F: Tensor
    """Comparisons with computed rows, beyond one a token with the anchor."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive frames of the pass: of one stream, or whole groups of several where frames are small."""

    streams: tuple[int, ...]
    start: int
    stop: int
    stream_K: Tensor
    """int64: of each frame."""

    @property
    def num_frames(self) -> int:
        """K."""
        return self.stop - self.start

    @property
    def frames(self) -> slice:
        return slice(self.start, self.stop)

    def rows(self, num_tokens: int) -> slice:
        return slice(self.start * num_tokens, self.stop * num_tokens)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of all frames."""

    rows_X: Tensor
    """int64, ascending."""
    ends: list[int]
    """Of each frame: how many there are up to its end."""

    @staticmethod
    def of(mask_FN: Tensor) -> _Rows:
        return _Rows(mask_FN.flatten().nonzero()[:, 0], mask_FN.sum(1).cumsum(0).tolist())

    def part(self, start: int, stop: int) -> slice:
        """Where those of some frames lie."""
        return slice(self.ends[start - 1] if start else 0, self.ends[stop - 1])

    def split(self, x_X: Tensor, blocks: Sequence[_Block]) -> tuple[Tensor, ...]:
        """Cut what there is of each row by blocks, which cover all frames."""
        parts = [self.part(block.start, block.stop) for block in blocks]
        pieces: tuple[Tensor, ...] = x_X.split([part.stop - part.start for part in parts])
        return pieces


@dataclass(frozen=True, slots=True)
class _Held:
    """What one boundary holds until the next has read it."""

    boundary: int
    choice: _Choice
    hidden_XQ: Tensor
    """Hidden units of the corrections of q, k, v side by side; of reused rows alone where few are."""
    place_X: Tensor
    """int64, of each row: where it is stored, or ANCHOR."""
    stored_h_XD: Tensor
    stored_projected_XC: Tensor
    computed: _Rows
    """What is stored first."""
    inside: _Rows
    """Reused rows whose source lies in the group."""
    plain: _Rows | None
    """Other reused rows, where few are; None where all rows are restored."""


class CompactedRun:
    """One group of each stream on its way through the layers."""

    def __init__(self, vit: Vit, policy: ReusePolicy, anchors: Anchors, workspace: Workspace, groups: Pass) -> None:
        self.vit, self.policy, self.anchors, self.workspace = vit, policy, anchors, workspace
        self.groups, self.plan = groups, plan_of(groups.sizes, vit.shape.num_tokens, vit.position.device)
        self.codec_FA = policy.addon.codec_net(self.groups.history_F4TPP).flatten(1)
        self.num_tokens, self.width = vit.shape.num_tokens, vit.shape.width
        self.num_frames = self.plan.num_frames
        self.num_rows = self.num_frames * self.num_tokens
        self.prefix, self.last = vit.shape.num_prefix, vit.shape.num_layers - 1
        self.rank = policy.addon.shape.restoration_rank
        device = vit.position.device
        self.stream_F = torch.tensor(self.groups.streams, device=device)[self.plan.slot_F]
        token_N = torch.arange(self.num_tokens, device=device)
        # Row of each row's anchor among all streams' anchors.
        self.anchor_X = (self.stream_F[:, None] * self.num_tokens + token_N).flatten()
        self.is_handed_X = torch.zeros(self.num_rows, dtype=torch.bool, device=device)
        self.is_handed_X[self.plan.handed_rows_H] = True
        self.restored_Fb = torch.zeros(self.num_frames, self.last, dtype=torch.int64, device=device)
        self.weighed_Fb = torch.zeros_like(self.restored_Fb)
        # What is handed on is then a whole frame, restored rows and all.
        self.keeps_frames = policy.reference_state == "grouped"
        # The tower's input; the first layer's q, k, v are computed when filling.
        self.input_XD = workspace.stored(1, self.num_rows, self.width)
        self.blocks = list(self._blocks(workspace.block_frames))
        start_F = torch.tensor([block.start for block in self.blocks for _ in range(block.num_frames)], device=device)
        rows_X = torch.arange(self.num_rows, device=device)
        self.place_in_block_X = rows_X - start_F.repeat_interleave(self.num_tokens) * self.num_tokens

    def _blocks(self, block_frames: int) -> Iterator[_Block]:
        """Yield frames, `block_frames` of them at most, in order."""
        streams, sizes, starts = self.groups.streams, self.plan.sizes, self.plan.handed
        if block_frames <= max(sizes):
            for stream, start, size in zip(streams, starts, sizes, strict=True):
                for first in range(start, start + size, block_frames):
                    last = min(first + block_frames, start + size)
                    yield _Block((stream,), first, last, self.stream_F[first:last])
            return
        begin = 0
        for index in range(1, len(sizes) + 1):
            stop = self.num_frames if index == len(sizes) else starts[index]
            if index == len(sizes) or stop + sizes[index] - starts[begin] > block_frames:
                first = starts[begin]
                yield _Block(streams[begin:index], first, stop, self.stream_F[first:stop])
                begin = index

    def _anchors_of(self, block: _Block, anchors_BNC: Tensor, out_KNC: Tensor) -> Tensor:
        """Return what each frame of a block has at its stream's anchor: [N, C] where that is one, else in `out_KNC`."""
        if len(block.streams) == 1:
            return anchors_BNC[block.streams[0]]
        return torch.index_select(anchors_BNC, 0, block.stream_K, out=out_KNC)

    def run(self) -> PassResult:
        """Take the groups through the tower and move the anchors on."""
        tokens = (self.num_frames, self.last, self.num_tokens)
        reuse_FbN = torch.zeros(tokens, dtype=torch.bool, device=self.vit.position.device)
        compared_Fb = torch.full_like(self.restored_Fb, self.num_tokens)
        for block in self.blocks:
            pixels_K3HW = self.groups.pixels_F3HW[block.frames]
            self.input_XD[block.rows(self.num_tokens)] = as_rows(self.vit.embed(pixels_K3HW))
        held: _Held | None = None
        for boundary in range(self.last):
            self._attend(boundary, held)
            choice = self._choose(boundary)
            before, held = held, self._compute(boundary, choice, held)
            self._move_on(before)
            reuse_FbN[:, boundary] = choice.reused_FN
            compared_Fb[:, boundary] += choice.num_pairs_F
        embeddings_FE = self._leave(held)
        self._move_on(held)
        executed_Fb = self.num_tokens - reuse_FbN.sum(-1)
        return PassResult(embeddings_FE, reuse_FbN, executed_Fb, self.restored_Fb, compared_Fb, self.weighed_Fb)

    # Step 1: fill and attend. Threads share one interpreter, so that every call from here counts: what a block needs is
    # cut for all blocks at once.

    def _filled(self, held: _Held | None) -> Iterator[tuple[_Block, Tensor]]:
        """Yield each block and its [K, N, C], input of the next attention, valid until the next is asked for."""
        return self._projected() if held is None else self._restored(held)

    def _projected(self) -> Iterator[tuple[_Block, Tensor]]:
        first = self.vit.layer(0)
        for block in self.blocks:
            out_KNC, out_XC, _ = self.workspace.block(block.num_frames, 3)
            normed_XD = self.vit.norm1(0, self.input_XD[block.rows(self.num_tokens)])
            torch.addmm(first.qkv_bias, normed_XD, first.qkv_weight.mT, out=out_XC)
            yield block, out_KNC

    def _restored(self, held: _Held) -> Iterator[tuple[_Block, Tensor]]:
        computed, inside, plain = held.computed, held.inside, held.plain
        anchors_BNC = self.anchors[held.boundary].projected_BNC
        parts = self._num_parts(held.boundary)
        ups_pRD = self.policy.addon.restoration(held.boundary).up_4DR[len(CORRECTED) - parts :].mT
        hidden_pXR = self._by_part(held.boundary, held.hidden_XQ)
        computed_X = computed.split(self.place_in_block_X[computed.rows_X], self.blocks)
        computed_XC = computed.split(held.stored_projected_XC[: len(computed.rows_X)], self.blocks)
        base_X = inside.split(held.place_X[held.choice.source_FN.flatten()[inside.rows_X]], self.blocks)
        for index, block in enumerate(self.blocks):
            out_KNC, out_XC, out_pXD = self.workspace.block(block.num_frames, parts)
            inside_X = inside.rows_X[inside.part(block.start, block.stop)]
            base_XC = None
            if len(inside_X):
                base_XC = held.stored_projected_XC.index_select(0, base_X[index])
            if plain is None:
                out_KNC.copy_(self._anchors_of(block, anchors_BNC, out_KNC))
                if base_XC is not None:
                    out_XC.index_copy_(0, self.place_in_block_X[inside_X], base_XC)
                out_pXD.baddbmm_(hidden_pXR[:, block.rows(self.num_tokens)], ups_pRD)
            else:
                plain_X = plain.rows_X[plain.part(block.start, block.stop)]
                anchor_XC = as_rows(anchors_BNC).index_select(0, self.anchor_X[plain_X])
                self._restore(held, plain_X, anchor_XC, out_XC)
                if base_XC is not None:
                    self._restore(held, inside_X, base_XC, out_XC)
            out_XC.index_copy_(0, computed_X[index], computed_XC[index])
            if self.keeps_frames:
                self._keep(held, block, out_KNC)
            yield block, out_KNC
        if plain is None:
            self.restored_Fb[:, held.boundary] += self._projected_ranks(held.boundary) * self.num_tokens

    def _restore(self, held: _Held, rows_X: Tensor, base_XC: Tensor, out_XC: Tensor) -> None:
        """Write some rows of a block: their bases and the corrections of q, k, v (before the last layer of k, v)."""
        if len(rows_X):
            base_pXD = base_XC.unflatten(1, (-1, self.width)).transpose(0, 1)
            hidden_pXR = self._by_part(held.boundary, held.hidden_XQ.index_select(0, rows_X))
            ups_4DR = self.policy.addon.restoration(held.boundary).up_4DR
            base_pXD.baddbmm_(hidden_pXR, ups_4DR[len(CORRECTED) - len(base_pXD) :].mT)
            out_XC.index_copy_(0, self.place_in_block_X[rows_X], base_XC)

    def _keep(self, held: _Held, block: _Block, projected_KNC: Tensor) -> None:
        """Store the frames of a block that are handed on, restored rows and all, behind the computed rows."""
        # Before the last layer h of CLS is all there is.
        num_h = 1 if self.anchors[held.boundary].h_BND is None else self.num_tokens
        for slot, start in enumerate(self.plan.handed):
            if block.start <= start < block.stop:
                kept, row = self._kept(held, slot), start * self.num_tokens
                rows_X = torch.arange(row, row + num_h, device=projected_KNC.device)
                held.stored_h_XD[kept.start : kept.start + num_h] = self._h_of(held, rows_X)
                held.stored_projected_XC[kept] = projected_KNC[start - block.start]

    def _kept(self, held: _Held, slot: int) -> slice:
        """Where the frame lies that the group at this place hands on."""
        first = len(held.computed.rows_X) + slot * self.num_tokens
        return slice(first, first + self.num_tokens)

    def _attend(self, boundary: int, held: _Held | None) -> None:
        """Run attention block by block and compare what it gives with the stream's anchor."""
        workspace, at = self.workspace, self.anchors[boundary]
        pre_proj_FND, hidden_XQ = self._pre_proj(boundary), self._hidden(boundary)
        down_DQ = self._down(boundary).mT
        for block, projected_KNC in self._filled(held):
            pre_proj_KND = pre_proj_FND[block.frames]
            importance_KN = workspace.importance_FN[block.frames]
            self.weighed_Fb[block.frames, boundary] += workspace.attention(projected_KNC, pre_proj_KND, importance_KN)
            difference_KND = workspace.difference_KND[: block.num_frames]
            anchor = self._anchors_of(block, at.pre_proj_BND, difference_KND)
            torch.sub(pre_proj_KND, anchor, out=difference_KND)
            norms(pre_proj_KND, out=workspace.norm_FN[block.frames])
            norms(difference_KND, out=workspace.difference_norm_FN[block.frames])
            if workspace.expects_reuse[boundary]:
                torch.mm(as_rows(difference_KND), down_DQ, out=hidden_XQ[block.rows(self.num_tokens)])
        every = slice(self.num_frames)
        workspace.to_anchor_FN[every] = cosine_from_norms(
            workspace.difference_norm_FN[every], workspace.norm_FN[every], at.norm_BN[self.stream_F]
        )
        if workspace.expects_reuse[boundary]:
            hidden_XQ.relu_()
            self.restored_Fb[:, boundary] += down_DQ.shape[1] * self.num_tokens

    def _leave(self, held: _Held | None) -> Tensor:
        """Return embeddings_FE: the last layer, for CLS alone where there is one."""
        vit = self.vit
        if not vit.shape.has_cls:
            pre_proj_FND = self._pre_proj(self.last)
            for block, projected_KNC in self._filled(held):
                pre_proj_FND[block.frames] = vit.attend(*vit.split_heads(projected_KNC))
            every_X = torch.arange(self.num_rows, device=self.anchor_X.device)
            h_FND = self._h_of(held, every_X).view_as(pre_proj_FND)
            return vit.head(vit.close(self.last, h_FND, pre_proj_FND))
        cls_X = torch.arange(0, self.num_rows, self.num_tokens, device=self.anchor_X.device)
        h_F1D = self._h_of(held, cls_X)[:, None]
        pre_proj_F1D = torch.empty_like(h_F1D)
        (query_Fh1d,) = vit.split_heads(vit.query(self.last, h_F1D))
        for block, projected_KNC in self._filled(held):
            k_KhNd, v_KhNd = vit.split_heads(projected_KNC)
            pre_proj_F1D[block.frames] = vit.attend(query_Fh1d[block.frames], k_KhNd, v_KhNd)
        return vit.head(vit.close(self.last, h_F1D, pre_proj_F1D))

    # Step 2: choose.

    def _choose(self, boundary: int) -> _Choice:
        """Decide for all frames of the pass."""
        frames = self.groups.frames
        num_pairs_F = torch.zeros(self.num_frames, dtype=torch.int64, device=self.anchor_X.device)
        source_FN = torch.zeros_like(self.plan.anchor_FN)
        for wave in self.plan.waves:
            sources = sources_of(source_FN, wave)
            similarities = [self._similarity(boundary, wave, one_KN, num_pairs_F) for one_KN in sources]
            similarity_KN, found_KN = nearer(similarities, sources)
            features = Features(
                importance_XA=self.workspace.importance_FN[wave.frames_K, self.prefix :],
                similarity_XA=similarity_KN[:, self.prefix :],
                codec_XA=self.codec_FA[wave.frames_K],
                kind=wave.kind,
                frames=[frames[index] for index in wave.frames] if frames else (),
            )
            note_sources(source_FN, wave, self.policy.gate(boundary, features), found_KN)
        row_FN = torch.where(source_FN == 0, ANCHOR, self.plan.rows_of(source_FN))
        return _Choice(source_FN != self.plan.own_F1, row_FN, num_pairs_F)

    def _similarity(self, boundary: int, wave: Wave, source_KN: Tensor, num_pairs_F: Tensor) -> Tensor:
        """Compare with the sources: known already where that is the anchor."""
        frames_K = wave.frames_K
        similarity_KN = self.workspace.to_anchor_FN[frames_K]
        if wave.kind == 0:
            # There is nothing but the anchor.
            return similarity_KN
        to_row_KN = source_KN != 0
        to_row_KN[:, : self.prefix] = False
        place_X, token_X = to_row_KN.nonzero(as_tuple=True)
        if len(place_X):
            pre_proj_XD = as_rows(self._pre_proj(boundary))
            norm_X = self.workspace.norm_FN.flatten()
            own_X = frames_K[place_X] * self.num_tokens + token_X
            other_X = self.plan.rows_of(source_KN, wave)[place_X, token_X]
            difference_XD = pre_proj_XD.index_select(0, own_X).sub_(pre_proj_XD.index_select(0, other_X))
            similarity_KN[place_X, token_X] = cosine_from_norms(norms(difference_XD), norm_X[own_X], norm_X[other_X])
            num_pairs_F.index_add_(0, frames_K, to_row_KN.sum(1))
        return similarity_KN

    # Step 3: compute.

    def _compute(self, boundary: int, choice: _Choice, before: _Held | None) -> _Held:
        """Put the computed rows through the layer, and prepare the restoration of the others."""
        vit, workspace = self.vit, self.workspace
        computed = _Rows.of(~choice.reused_FN)
        computed_X = computed.rows_X
        num_computed = len(computed_X)
        ends_into_last = self.anchors[boundary].h_BND is None
        next_layer = vit.layer(boundary + 1)
        first = self.width if ends_into_last else 0
        weight_CD, bias_C = next_layer.qkv_weight[first:], next_layer.qkv_bias[first:]
        # One at least, to be read in vain where everything is reused: without CLS it may be.
        num_kept = len(self.plan.handed) * self.num_tokens * int(self.keeps_frames)
        num_stored = max(1, num_computed + num_kept)
        stored_h_XD = workspace.stored(boundary, num_stored, self.width)
        stored_projected_XC = workspace.stored(boundary, num_stored, (2 if ends_into_last else 3) * self.width)
        pre_proj_XD = as_rows(self._pre_proj(boundary))
        for start in range(0, num_computed, ROWS_PER_PRODUCT):
            part = slice(start, min(start + ROWS_PER_PRODUCT, num_computed))
            rows_X = computed_X[part]
            before_XD, own_pre_proj_XD, hidden_XM = workspace.room(len(rows_X))
            torch.index_select(pre_proj_XD, 0, rows_X, out=own_pre_proj_XD)
            h_XD = stored_h_XD[part]
            vit.close_into(boundary, self._h_of(before, rows_X, before_XD), own_pre_proj_XD, hidden_XM, h_XD)
            torch.addmm(bias_C, vit.norm1(boundary + 1, h_XD), weight_CD.mT, out=stored_projected_XC[part])
        place_X = torch.full((self.num_rows,), ANCHOR, device=computed_X.device)
        place_X[computed_X] = torch.arange(num_computed, device=computed_X.device)

        many = self.num_rows - num_computed >= RESTORE_ALL_FROM * self.num_rows
        at_anchor_FN = choice.source_FN == ANCHOR
        inside, plain = _Rows.of(choice.reused_FN & ~at_anchor_FN), _Rows.of(choice.reused_FN & at_anchor_FN)
        # Hidden units differ from those prepared where the source lies in the group.
        self._hide(boundary, choice, inside.rows_X)
        if not workspace.expects_reuse[boundary]:
            self._hide(boundary, choice, plain.rows_X)
        all_prepared = workspace.expects_reuse[boundary]
        workspace.expects_reuse[boundary] = many
        restores_all = many and all_prepared
        projected_ranks = self._projected_ranks(boundary)
        if not restores_all:
            self.restored_Fb[:, boundary] += projected_ranks * choice.reused_FN.sum(1)
        return _Held(
            boundary=boundary,
            choice=choice,
            hidden_XQ=self._hidden(boundary),
            place_X=place_X,
            stored_h_XD=stored_h_XD,
            stored_projected_XC=stored_projected_XC,
            computed=computed,
            inside=inside,
            plain=None if restores_all else plain,
        )

    def _hide(self, boundary: int, choice: _Choice, rows_X: Tensor) -> None:
        """Write the hidden units of single rows, from the difference to their sources."""
        if not len(rows_X):
            return
        hidden_XQ, down_QD = self._hidden(boundary), self._down(boundary)
        for part_X in rows_X.split(ROWS_PER_PRODUCT):
            difference_XD = self._difference(boundary, choice, part_X)
            hidden_XQ.index_copy_(0, part_X, torch.relu_(difference_XD @ down_QD.mT))
        self._add_ranks(boundary, rows_X, len(down_QD))

    def _difference(self, boundary: int, choice: _Choice, rows_X: Tensor) -> Tensor:
        """Return pre_proj of single rows minus that of their sources."""
        pre_proj_XD = as_rows(self._pre_proj(boundary))
        other_XD = as_rows(self.anchors[boundary].pre_proj_BND).index_select(0, self.anchor_X[rows_X])
        source_X = choice.source_FN.flatten()[rows_X]
        (inside,) = (source_X != ANCHOR).nonzero(as_tuple=True)
        if len(inside):
            other_XD.index_copy_(0, inside, pre_proj_XD.index_select(0, source_X[inside]))
        return torch.sub(pre_proj_XD.index_select(0, rows_X), other_XD, out=other_XD)

    def _h_of(self, held: _Held | None, rows_X: Tensor, out_XD: Tensor | None = None) -> Tensor:
        """Return the input h of the next layer for some rows: stored, or restored now."""
        if held is None:
            return torch.index_select(self.input_XD, 0, rows_X, out=out_XD)
        place_X = held.place_X[rows_X]
        h_XD = torch.index_select(held.stored_h_XD, 0, place_X.clamp_min(0), out=out_XD)
        (lacking,) = (place_X == ANCHOR).nonzero(as_tuple=True)
        if not len(lacking):
            return h_XD
        lacking_X = rows_X[lacking]
        at = self.anchors[held.boundary]
        assert at.h_BND is not None
        base_X = held.choice.source_FN.flatten()[lacking_X]
        base_XD = as_rows(at.h_BND).index_select(0, self.anchor_X[lacking_X])
        (inside,) = (base_X != ANCHOR).nonzero(as_tuple=True)
        if len(inside):
            base_XD.index_copy_(0, inside, held.stored_h_XD.index_select(0, held.place_X[base_X[inside]]))
        restoration = self.policy.addon.restoration(held.boundary)
        difference_XD = self._difference(held.boundary, held.choice, lacking_X)
        hidden_XR = torch.relu_(difference_XD @ restoration.down_QD[: self.rank].mT)
        base_XD.addmm_(hidden_XR, restoration.up_4DR[0].mT)
        self._add_ranks(held.boundary, lacking_X, 2 * self.rank)
        return h_XD.index_copy_(0, lacking, base_XD)

    def _move_on(self, held: _Held | None) -> None:
        """Hand each group's first computed frame, its last in display order, on as the anchor of its stream."""
        if held is None:
            return
        at = self.anchors[held.boundary]
        (stored_X,) = self.is_handed_X[held.computed.rows_X].nonzero(as_tuple=True)
        rows_X = held.computed.rows_X[stored_X]
        anchor_X = self.anchor_X[rows_X]
        pre_proj_XD = as_rows(self._pre_proj(held.boundary)).index_select(0, rows_X)
        as_rows(at.pre_proj_BND).index_copy_(0, anchor_X, pre_proj_XD)
        at.norm_BN.flatten().index_copy_(0, anchor_X, norms(pre_proj_XD))
        if self.keeps_frames:
            for slot, stream in enumerate(self.groups.streams):
                kept = self._kept(held, slot)
                at.projected_BNC[stream] = held.stored_projected_XC[kept]
                if at.h_BND is not None:
                    at.h_BND[stream] = held.stored_h_XD[kept]
            return
        as_rows(at.projected_BNC).index_copy_(0, anchor_X, held.stored_projected_XC.index_select(0, stored_X))
        if at.h_BND is not None:
            as_rows(at.h_BND).index_copy_(0, anchor_X, held.stored_h_XD.index_select(0, stored_X))

    # What restoration is made of.

    def _down(self, boundary: int) -> Tensor:
        """First layers of the corrections of q, k, v; before the last layer, q of patches leads nowhere."""
        return self.policy.addon.restoration(boundary).down_QD[-self._projected_ranks(boundary) :]

    def _hidden(self, boundary: int) -> Tensor:
        return self.workspace.hidden_2XQ[boundary % 2][: self.num_rows, : self._projected_ranks(boundary)]

    def _by_part(self, boundary: int, hidden_XQ: Tensor) -> Tensor:
        """Return hidden units [p, X, R] of the corrections of each of q, k, v."""
        hidden_XpR: Tensor = hidden_XQ.unflatten(1, (self._num_parts(boundary), self.rank))
        return hidden_XpR.transpose(0, 1)

    def _num_parts(self, boundary: int) -> int:
        return 2 if self.anchors[boundary].h_BND is None else 3

    def _pre_proj(self, boundary: int) -> Tensor:
        return self.workspace.pre_proj_2FND[boundary % 2][: self.num_frames]

    def _projected_ranks(self, boundary: int) -> int:
        return self._num_parts(boundary) * self.rank

    def _add_ranks(self, boundary: int, rows_X: Tensor, ranks: int) -> None:
        frame_X = rows_X.div(self.num_tokens, rounding_mode="floor")
        self.restored_Fb[:, boundary] += ranks * torch.bincount(frame_X, minlength=self.num_frames)
