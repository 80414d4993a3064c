"""ReuseViT inference: only computed tokens go through the tower's products. Equal to `masked` to rounding.

A pass takes the next group of each of S streams through all layers together. Within a layer: attention for every
frame; then the choice, wave after wave, which needs nothing but pre_proj; then the computed tokens of all streams
through dense products; then restoration. So a group's references meet inside a layer and leave nothing behind but the
last anchor frame's rows (anchors.py).

Where most tokens are reused, *every* row is restored from its stream's anchor, in place where the next attention reads
it, and the few others are written over: products on contiguous rows beat gathering what they save. The others are
computed rows, and rows whose source lies in the group itself.

Shapes: S streams of the pass, F frames of the pass, N tokens (CLS first), A = N - 1 patches, L layers, D width,
C channels of a projection, E embedding width, X rows (frame · N + token), R rank of a restoration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.anchors import BoundaryAnchors, cosine_from_norms, empty_projected, norm_dtype, norms
from reuse_models.choice import Choice, Seen, choose
from reuse_models.frame_order import GROUP_SIZE
from reuse_models.gate import FrameId
from reuse_models.group_layout import ANCHOR, GroupLayout, group_layout
from reuse_models.restore import CORRECTED
from reuse_models.rules import Rules
from reuse_models.vit import Vit

ROWS_PER_PRODUCT = 1024
"""Tokens that go through a layer's products at once: enough for full speed, few enough for buffers to stay warm."""
RESTORE_ALL_FROM = 0.5
"""Share of reused tokens from which restoring every row beats gathering the reused ones."""


class Workspace:
    """Buffers of one pass, written anew by every layer; not state, but kept, since fresh memory costs page faults."""

    def __init__(self, vit: Vit, num_frames: int) -> None:
        shape = vit.shape
        like = vit.position
        tokens = (num_frames, shape.num_tokens)
        self.h_FND = like.new_empty(*tokens, shape.width)
        self.pre_proj_FND = like.new_empty(*tokens, shape.width)
        self.difference_FND = like.new_empty(*tokens, shape.width)
        self.norm_FN = like.new_empty(tokens, dtype=norm_dtype(like))
        self.to_anchor_FN = like.new_empty(tokens, dtype=norm_dtype(like))
        self.importance_FN = like.new_empty(tokens)
        self.projected_FNC = empty_projected(like, num_frames, shape, 3)

    @property
    def num_frames(self) -> int:
        """How many frames it has room for."""
        return len(self.h_FND)

    def projected(self, num_frames: int, channels: int) -> Tensor:
        """Return the first frames' [F, N, channels]: k and v alone take the front of the rows."""
        return self.projected_FNC[:num_frames, :, :channels]


@dataclass(frozen=True, slots=True)
class Pass:
    """The next groups of S streams."""

    streams: tuple[int, ...]
    """Which of the anchors' streams."""
    sizes: tuple[int, ...]
    """Frames of each stream's group, 1..4."""
    pixels_F3HW: Tensor
    """Stream after stream, each group in computing order."""
    codec_FA: Tensor
    """Scores of the codec net."""
    frames: Sequence[FrameId]
    """For gates that draw by frame; may be empty."""


@dataclass(frozen=True, slots=True)
class PassResult:
    """Frames in the order of the pass."""

    embeddings_FE: Tensor
    reuse_FbN: Tensor
    """bool [F, L - 1, N]."""
    restored_Fb: Tensor
    """int64: rows put through each boundary's restoration."""
    compared_Fb: Tensor
    """int64: pairs of rows compared at each boundary."""


class Compacted:
    """The engine: a tower and how reuse goes in it."""

    def __init__(self, vit: Vit, rules: Rules) -> None:
        self.vit, self.rules = vit, rules

    def dense(self, anchors: tuple[BoundaryAnchors, ...], streams: Sequence[int], pixels_S3HW: Tensor) -> Tensor:
        """Compute one frame of each stream whole, make it the streams' anchor, and return embedding_SE."""
        vit, last = self.vit, self.vit.shape.num_layers - 1
        streams_S = torch.tensor(streams, device=pixels_S3HW.device)
        h_SND = vit.embed(pixels_S3HW)
        projected_SNC = vit.qkv(0, h_SND)
        for layer in range(last):
            pre_proj_SND = vit.attend(*vit.split_heads(projected_SNC))
            h_SND = vit.close(layer, h_SND, pre_proj_SND)
            at = anchors[layer]
            projected_SNC = vit.key_value(layer + 1, h_SND) if at.h_BND is None else vit.qkv(layer + 1, h_SND)
            at.pre_proj_BND[streams_S] = pre_proj_SND
            at.norm_BN[streams_S] = norms(pre_proj_SND)
            at.projected_BNC[streams_S] = projected_SNC
            if at.h_BND is not None:
                at.h_BND[streams_S] = h_SND
        return self._finish(h_SND[:, :1], projected_SNC)

    def group(self, anchors: tuple[BoundaryAnchors, ...], workspace: Workspace, work: Pass) -> PassResult:
        """Take the next group of each stream through the tower and move the anchors on."""
        shape = self.vit.shape
        layout = group_layout(work.sizes, work.pixels_F3HW.device)
        num_frames, last = layout.num_frames, shape.num_layers - 1
        reuse_FbN = torch.zeros(num_frames, last, shape.num_tokens, dtype=torch.bool, device=work.pixels_F3HW.device)
        restored_Fb = torch.zeros(num_frames, last, dtype=torch.int64, device=reuse_FbN.device)
        compared_Fb = restored_Fb.clone()
        self._enter(workspace, layout, work.pixels_F3HW)
        for boundary in range(last):
            run = _Boundary(self.vit, self.rules, boundary, anchors[boundary], _Group(workspace, layout, work))
            choice = run.choose()
            restored_Fb[:, boundary] = run.fill(choice)
            run.move_on(choice)
            reuse_FbN[:, boundary] = choice.reused_FN
            compared_Fb[:, boundary] = choice.num_pairs_F + shape.num_tokens
        h_F1D = workspace.h_FND[:num_frames, :1]
        embeddings_FE = self._finish(h_F1D, workspace.projected(num_frames, 2 * shape.width))
        return PassResult(embeddings_FE, reuse_FbN, restored_Fb, compared_Fb)

    def _enter(self, workspace: Workspace, layout: GroupLayout, pixels_F3HW: Tensor) -> None:
        """Patches and the first layer's projections, for which there is no reuse."""
        for block in _frame_blocks(layout):
            h_FND = self.vit.embed(pixels_F3HW[block])
            workspace.h_FND[block] = h_FND
            workspace.projected_FNC[block] = self.vit.qkv(0, h_FND)

    def _finish(self, h_F1D: Tensor, projected_FNC: Tensor) -> Tensor:
        vit = self.vit
        (q_Fh1d,) = vit.split_heads(vit.query(vit.shape.num_layers - 1, h_F1D))
        k_FhNd, v_FhNd = vit.split_heads(projected_FNC)
        return vit.finish(q_Fh1d, k_FhNd, v_FhNd, h_F1D)


@dataclass(frozen=True, slots=True)
class _Group:
    workspace: Workspace
    layout: GroupLayout
    work: Pass


class _Boundary:
    """One boundary of one pass: the step from layer `index` to layer `index` + 1."""

    def __init__(self, vit: Vit, rules: Rules, index: int, anchors: BoundaryAnchors, group: _Group) -> None:
        self.vit, self.rules, self.index, self.anchors = vit, rules, index, anchors
        self.workspace, self.layout, self.work = group.workspace, group.layout, group.work
        self.is_last = anchors.h_BND is None
        self.num_tokens = self.vit.shape.num_tokens
        self.stream_F = torch.tensor(self.work.streams, device=self.layout.slot_F.device)[self.layout.slot_F]
        # Restoration has one product a corrected tensor; before the last layer, h and q of patches lead nowhere.
        self.corrected = CORRECTED[2:] if self.is_last else CORRECTED
        restoration = rules.addon.restoration(index)
        self.rank = restoration.rank
        first = len(CORRECTED) - len(self.corrected)
        self.down_QD = restoration.down_QD[first * self.rank :]
        self.ups = restoration.up_4DR[first:]

    def choose(self) -> Choice:
        """Run this layer's attention and decide who is reused."""
        layout, workspace = self.layout, self.workspace
        frames = layout.num_frames
        for slot, block in _stream_blocks(layout):
            stream = self.work.streams[slot]
            q_FhNd, k_FhNd, v_FhNd = self.vit.split_heads(workspace.projected_FNC[block])
            pre_proj_FND = workspace.pre_proj_FND[block]
            pre_proj_FND.copy_(self.vit.attend(q_FhNd, k_FhNd, v_FhNd))
            workspace.importance_FN[block] = self.vit.importance(q_FhNd, k_FhNd)
            difference_FND = workspace.difference_FND[block]
            torch.sub(pre_proj_FND, self.anchors.pre_proj_BND[stream], out=difference_FND)
            norm_FN = norms(pre_proj_FND)
            workspace.norm_FN[block] = norm_FN
            workspace.to_anchor_FN[block] = cosine_from_norms(
                norms(difference_FND), norm_FN, self.anchors.norm_BN[stream]
            )
        seen = Seen(
            workspace.pre_proj_FND[:frames],
            workspace.norm_FN[:frames],
            workspace.to_anchor_FN[:frames],
            workspace.importance_FN[:frames],
            self.work.codec_FA,
            self.work.frames,
        )
        chained = self.rules.semantics == "chained"
        return choose(self.index, seen, layout, self.rules.gate, chained)

    def fill(self, choice: Choice) -> Tensor:
        """Write the next layer's input: compute, restore. Returns [F] rows restored."""
        workspace, frames = self.workspace, self.layout.num_frames
        computed_X = (~choice.reused_FN).flatten().nonzero()[:, 0]
        # What the computed rows need lies where restoration is about to write.
        h_XD = workspace.h_FND[:frames].flatten(0, 1).index_select(0, computed_X)
        pre_proj_XD = workspace.pre_proj_FND[:frames].flatten(0, 1).index_select(0, computed_X)
        num_rows = frames * self.num_tokens
        restores_all = num_rows - len(computed_X) >= RESTORE_ALL_FROM * num_rows
        if restores_all:
            self._restore_all()
        self._compute(computed_X, h_XD, pre_proj_XD)
        restored_F = torch.full((frames,), self.num_tokens if restores_all else 0, device=computed_X.device)
        plain_FN = (choice.source_FN == ANCHOR) & (choice.base_FN == ANCHOR)
        remaining_FN = choice.reused_FN & ~plain_FN if restores_all else choice.reused_FN
        if self.rules.semantics == "chained":
            # A restored row may build upon a restored one: kinds in order.
            for wave in self.layout.waves:
                of_wave_FN = torch.zeros_like(remaining_FN)
                of_wave_FN[wave.frames_K] = remaining_FN[wave.frames_K]
                self._restore_rows(choice, of_wave_FN)
        else:
            self._restore_rows(choice, remaining_FN)
        return restored_F + remaining_FN.sum(1)

    def move_on(self, choice: Choice) -> None:
        """Make each group's first computed frame, its last in display order, the stream's anchor."""
        workspace, anchors = self.workspace, self.anchors
        whole = self.rules.semantics != "anchor"
        for slot, start in enumerate(self.layout.starts):
            stream = self.work.streams[slot]
            computed_X = (~choice.reused_FN[start]).nonzero()[:, 0]
            pairs = [
                (anchors.pre_proj_BND[stream], workspace.pre_proj_FND[start], False),
                (anchors.norm_BN[stream], workspace.norm_FN[start], False),
                (anchors.projected_BNC[stream], self._projected()[start], whole),
            ]
            if anchors.h_BND is not None:
                pairs.append((anchors.h_BND[stream], workspace.h_FND[start], whole))
            for kept, new, all_rows in pairs:
                if all_rows:
                    kept.copy_(new)
                else:
                    kept.index_copy_(0, computed_X, new.index_select(0, computed_X))

    def _projected(self) -> Tensor:
        channels = (2 if self.is_last else 3) * self.vit.shape.width
        return self.workspace.projected(self.layout.num_frames, channels)

    def _restore_all(self) -> None:
        """Write anchor + correction to every row of the next layer's input, CLS's included."""
        for slot, block in _stream_blocks(self.layout):
            stream = self.work.streams[slot]
            hidden_XQ = torch.relu_(self.workspace.difference_FND[block].flatten(0, 1) @ self.down_QD.mT)
            targets = [(self.workspace.projected_FNC[block], self.anchors.projected_BNC[stream])]
            if self.anchors.h_BND is not None:
                targets.insert(0, (self.workspace.h_FND[block], self.anchors.h_BND[stream]))
            index = 0
            for out_FNC, anchor_NC in targets:
                for channel in range(0, anchor_NC.shape[-1], self.vit.shape.width):
                    columns = slice(channel, channel + self.vit.shape.width)
                    hidden_XR = hidden_XQ[:, index * self.rank : (index + 1) * self.rank]
                    hidden_FNR = hidden_XR.view(-1, self.num_tokens, self.rank)
                    for frame in range(len(hidden_FNR)):
                        torch.addmm(
                            anchor_NC[:, columns],
                            hidden_FNR[frame],
                            self.ups[index].mT,
                            out=out_FNC[frame, :, columns],
                        )
                    index += 1

    def _compute(self, computed_X: Tensor, h_XD: Tensor, pre_proj_XD: Tensor) -> None:
        frames = self.layout.num_frames
        h_out = self.workspace.h_FND[:frames].flatten(0, 1)
        projected_out = self._projected().flatten(0, 1)
        for rows_X, h_rows, pre_proj_rows in zip(
            computed_X.split(ROWS_PER_PRODUCT),
            h_XD.split(ROWS_PER_PRODUCT),
            pre_proj_XD.split(ROWS_PER_PRODUCT),
            strict=True,
        ):
            next_h = self.vit.close(self.index, h_rows, pre_proj_rows)
            project = self.vit.key_value if self.is_last else self.vit.qkv
            h_out.index_copy_(0, rows_X, next_h)
            projected_out.index_copy_(0, rows_X, project(self.index + 1, next_h))

    def _restore_rows(self, choice: Choice, rows_FN: Tensor) -> None:
        """Restore single rows from their sources and bases."""
        rows_X = rows_FN.flatten().nonzero()[:, 0]
        for part_X in rows_X.split(ROWS_PER_PRODUCT):
            self._restore_part(choice, part_X)

    def _restore_part(self, choice: Choice, rows_X: Tensor) -> None:
        workspace, frames = self.workspace, self.layout.num_frames
        source_X = choice.source_FN.flatten()[rows_X]
        base_X = choice.base_FN.flatten()[rows_X]
        frame_X = rows_X.div(self.num_tokens, rounding_mode="floor")
        anchor_X = self.stream_F[frame_X] * self.num_tokens + rows_X % self.num_tokens

        difference_XD = workspace.difference_FND[:frames].flatten(0, 1).index_select(0, rows_X)
        (inside,) = (source_X != ANCHOR).nonzero(as_tuple=True)
        if len(inside):
            pre_proj_XD = workspace.pre_proj_FND[:frames].flatten(0, 1)
            own, other = pre_proj_XD.index_select(0, rows_X[inside]), pre_proj_XD.index_select(0, source_X[inside])
            difference_XD.index_copy_(0, inside, own.sub_(other))
        hidden_XQ = torch.relu_(difference_XD @ self.down_QD.mT)
        (based,) = (base_X != ANCHOR).nonzero(as_tuple=True)

        targets = [(self._projected(), self.anchors.projected_BNC)]
        if self.anchors.h_BND is not None:
            targets.insert(0, (workspace.h_FND[:frames], self.anchors.h_BND))
        index = 0
        for out_FNC, anchor_BNC in targets:
            out_XC = out_FNC.flatten(0, 1)
            restored_XC = anchor_BNC.flatten(0, 1).index_select(0, anchor_X)
            if len(based):
                restored_XC.index_copy_(0, based, out_XC.index_select(0, base_X[based]))
            for channel in range(0, anchor_BNC.shape[-1], self.vit.shape.width):
                hidden_XR = hidden_XQ[:, index * self.rank : (index + 1) * self.rank]
                restored_XC[:, channel : channel + self.vit.shape.width].addmm_(hidden_XR, self.ups[index].mT)
                index += 1
            out_XC.index_copy_(0, rows_X, restored_XC)


def _stream_blocks(layout: GroupLayout) -> list[tuple[int, slice]]:
    return [
        (slot, slice(start, start + size))
        for slot, (start, size) in enumerate(zip(layout.starts, layout.sizes, strict=True))
    ]


def _frame_blocks(layout: GroupLayout) -> list[slice]:
    return [
        slice(start, min(start + GROUP_SIZE, layout.num_frames)) for start in range(0, layout.num_frames, GROUP_SIZE)
    ]
