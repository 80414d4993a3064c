"""The engine of `fixed_capacity` with each layer in a few Triton kernels: what a GPU runs towers in 16 bits with.

A layer is fifteen launches: keys and values restored, attention (with the scores that importance is made of), two
products of the corrections' first layers, choice and addresses, the gather of the rows to be computed, the anchors'
move, hidden units, and the layer's own four products with two norms and an activation between them.

Anchors are read where they lie, and only what was computed is written to them; what that overwrites is kept, so that a
call which had too few rows can be undone. All groups of a pass have one size.

Serves the reference state `anchor`, gates that look at a token alone (trained ones, and forced ones with random masks),
and towers without rotary positions; others take `fixed_capacity`'s plain steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import triton
from torch import Tensor

from reuse_models.reusevit.addon import CORRECTED, ReusePolicy
from reuse_models.reusevit.anchors import Anchors, start_anchors, tensors_of
from reuse_models.reusevit.engines import fused_kernels as kernels
from reuse_models.reusevit.engines.given_rows import GivenRows, GivenRun, Places, put
from reuse_models.reusevit.engines.workspace import as_rows
from reuse_models.reusevit.frame_order import GROUPS, PREVIOUS
from reuse_models.reusevit.gate import LEAST_CHANGE, Decision, ForcedGate, HardGate
from reuse_models.reusevit.reference import Pass, Plan
from reuse_models.tower.vit import Vit

HALVES = (torch.bfloat16, torch.float16)
LOG2_E = 1.4426950408889634
PREFIX_ROWS = 16
"""Rows of the tile that holds the prefix: the fewest that a product takes."""
CHOICE_TOKENS = 4
GATHER_ROWS, GATHER_COLUMNS = 16, 256
HIDDEN_ROWS = 8
FILL_ROWS, FILL_COLUMNS = 128, 128
QUERIES_AT_ONCE, KEYS_AT_ONCE, ATTENTION_WARPS, ATTENTION_STAGES = 128, 64, 4, 3


def can_fuse(vit: Vit, policy: ReusePolicy) -> bool:
    """Say whether the kernels serve this tower and this policy."""
    gate = policy.gate
    sees_one_token = type(gate) is HardGate or (isinstance(gate, ForcedGate) and gate.choice == "random")
    shape = vit.shape
    return (
        sees_one_token
        and policy.reference_state == "anchor"
        and vit.position.dtype in HALVES
        and shape.rope_theta is None
        and shape.num_prefix <= PREFIX_ROWS
        and shape.num_layers > 1
    )


class FusedPlaces(Places):
    """The memory that the steps of passes of up to `num_streams` streams work in, and their recordings."""

    def __init__(self, vit: Vit, policy: ReusePolicy, num_streams: int, streams_per_pass: int, records: bool) -> None:
        super().__init__(vit, min(num_streams, streams_per_pass), records)
        shape, like, num_frames, num_rows = vit.shape, vit.position, self.num_frames, self.num_rows
        num_tokens, width, last = shape.num_tokens, shape.width, shape.num_layers - 1
        units = len(CORRECTED) * policy.addon.shape.restoration_rank
        whole = partial(torch.zeros, device=like.device)
        self.stream_F = whole(num_frames, dtype=torch.int32)
        self.stored_h_XD = like.new_zeros(num_rows, width)
        self.stored_XC = like.new_zeros(num_rows, 3 * width)
        self.filled_XC = like.new_zeros(num_rows, 2 * width)
        self.pre_proj_XD = like.new_zeros(num_rows, width)
        self.own_XQ = like.new_zeros(num_rows * units)
        self.hidden_XQ = like.new_zeros(num_rows, units)
        self.h_CD = like.new_zeros(num_rows, width)
        self.gathered_CD = like.new_zeros(num_rows, width)
        self.normed_CD = like.new_zeros(num_rows, width)
        tiles = 1 if shape.num_prefix else query_tiles(shape.num_patches)
        self.scores = whole(num_frames * shape.num_heads * tiles * num_tokens, dtype=torch.float32)
        self.stats = whole(num_frames * shape.num_heads * 2, dtype=torch.float32)
        self.norm_X = whole(num_rows, dtype=torch.float32)
        self.every_X = torch.arange(num_rows, dtype=torch.int32, device=like.device)
        self.base_2X = whole(2, num_rows, dtype=torch.int32)
        self.source_X = whole(num_rows, dtype=torch.int32)
        self.rows_C = whole(num_rows, dtype=torch.int32)
        self.needed_b = whole(last, dtype=torch.int32)
        self.saved = start_anchors(vit, num_streams)
        """Rows of anchors as they were before a call that may have to be done again, where `seen` says so."""
        self.seen_2bBN = whole(2, last, num_streams, num_tokens, dtype=torch.uint8)
        """Of what attention made; of the states behind it."""

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *tensors_of(self.saved)]


class FusedCapacity(GivenRows[FusedPlaces]):
    """The engine of Triton's kernels."""

    one_size = True

    def __init__(self, vit: Vit, policy: ReusePolicy) -> None:
        super().__init__(vit, policy)
        self._side = torch.cuda.Stream(vit.position.device) if vit.position.is_cuda else None

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Do what follows beside what comes then, until `together`."""
        if self._side is None:
            yield
        else:
            self._side.wait_stream(torch.cuda.current_stream(self._side.device))
            with torch.cuda.stream(self._side):
                yield

    def together(self) -> None:
        """Wait, on the device, for what was done `beside`."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)

    def new_places(self, num_streams: int, streams_per_pass: int) -> FusedPlaces:
        return FusedPlaces(self.vit, self.policy, num_streams, streams_per_pass, self.records)

    def save(self, anchors: Anchors, places: FusedPlaces) -> None:
        """From here on, keep what is overwritten, for `restore`."""
        places.seen_2bBN.zero_()

    def restore(self, anchors: Anchors, places: FusedPlaces) -> None:
        for current, saved, seen_BN in self._pairs(anchors, places):
            current.copy_(torch.where(_beside(seen_BN, current), saved, current))

    def keep(self, anchors: Anchors, places: FusedPlaces, streams: Sequence[int]) -> None:
        """Keep these streams' anchors, which something other than a pass is about to overwrite."""
        for current, saved, seen_BN in self._pairs(anchors, places):
            for stream in streams:
                seen_N = _beside(seen_BN[stream], current[stream])
                saved[stream] = torch.where(seen_N, saved[stream], current[stream])
        for stream in streams:
            places.seen_2bBN[:, :, stream] = 1

    @staticmethod
    def _pairs(anchors: Anchors, places: FusedPlaces) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return what anchors hold, what is kept of it, and where anything is."""
        pairs = []
        for at, saved, of_pre_proj_BN, of_states_BN in zip(anchors, places.saved, *places.seen_2bBN, strict=True):
            pairs += [
                (at.pre_proj_BND, saved.pre_proj_BND, of_pre_proj_BN),
                (at.norm_BN, saved.norm_BN, of_pre_proj_BN),
            ]
            pairs.append((at.projected_BNC, saved.projected_BNC, of_states_BN))
            if at.h_BND is not None and saved.h_BND is not None:
                pairs.append((at.h_BND, saved.h_BND, of_states_BN))
        return pairs

    def load(self, places: FusedPlaces, groups: Pass) -> None:
        super().load(places, groups)
        put(
            [stream for stream, size in zip(groups.streams, groups.sizes, strict=True) for _ in range(size)],
            places.stream_F,
        )

    def steps(self, anchors: Anchors, places: FusedPlaces, plan: Plan, groups: Pass) -> FusedRun:
        return FusedRun(self, anchors, places, plan, groups)


class FusedRun(GivenRun[FusedPlaces]):
    """One group of each stream on its way through the layers."""

    engine: FusedCapacity

    def __init__(self, engine: FusedCapacity, anchors: Anchors, places: FusedPlaces, plan: Plan, groups: Pass) -> None:
        super().__init__(engine, anchors, places, plan, groups)
        self.num_frames, self.size, rows = plan.num_frames, plan.sizes[0], self.num_rows
        # All streams in their order need no copy of their anchors.
        self.all_streams = groups.streams == tuple(range(len(anchors[0].norm_BN)))
        self.key = (groups.sizes, self.all_streams)
        self.stored_h_XD, self.stored_XC = places.stored_h_XD[:rows], places.stored_XC[:rows]
        self.pre_proj_XD = places.pre_proj_XD[:rows]
        self.tiles = query_tiles(self.vit.shape.num_patches)

    # The steps.

    def enter(self) -> None:
        """The tower's input and the first layer's q, k, v, of all rows; the scores of the codec net."""
        places, first = self.places, self.vit.layer(0)
        with self.engine.beside():
            # Dozens of small kernels, which leave most of a GPU free.
            scores_FPP = self.addon.codec_net(places.history_F4TPP[: self.num_frames])
            places.codec_FA[: self.num_frames].copy_(scores_FPP.flatten(1))
        self.stored_h_XD.copy_(as_rows(self.vit.embed(places.pixels_F3HW[: self.num_frames])))
        torch.addmm(first.qkv_bias, self.vit.norm1(0, self.stored_h_XD), first.qkv_weight.mT, out=self.stored_XC)
        places.needed_b.zero_()
        self.engine.together()

    def layer(self, boundary: int, num_given: int) -> None:
        at, rank = self.anchors[boundary], self.rank
        self._attend(boundary - 1)
        units = self.num_ranks(boundary)
        if rank:
            down_DQ = self.down(boundary).mT
            own_XQ = self.places.own_XQ[: self.num_rows * units].view(-1, units)
            torch.mm(self.pre_proj_XD, down_DQ, out=own_XQ)
            anchor_SND = at.pre_proj_BND if self.all_streams else at.pre_proj_BND.index_select(0, self.streams_S)
            of_anchors_HQ = as_rows(anchor_SND) @ down_DQ
        self._choose(boundary, num_given)
        self._gather(boundary - 1, self.places.rows_C, num_given, with_pre_proj=True)
        self._move(boundary - 1, boundary)
        if rank:
            kernels.hidden_kernel[(triton.cdiv(self.num_rows, HIDDEN_ROWS),)](
                own_XQ, of_anchors_HQ, self.places.source_X, self.plan.slot_F, self.places.hidden_XQ, self.num_rows,
                self.num_tokens, self.places.hidden_XQ.stride(0),
                UNITS=units, BLOCK_T=HIDDEN_ROWS, BLOCK_U=_power(units),
            )  # fmt: skip
        self._close(boundary, num_given)

    def leave(self) -> None:
        """The last layer, for CLS alone where there is one."""
        vit, held = self.vit, self.last - 1
        if vit.shape.has_cls:
            h_FD = self.stored_h_XD.index_select(0, self._base(held)[:: self.num_tokens][: self.num_frames])
            query_FD = vit.query(self.last, h_FD)
            pre_proj_FMD = query_FD.new_empty(self.num_frames, 1, self.width)
            self._attend(held, query_FD, pre_proj_FMD)
            h_FMD = h_FD[:, None]
        else:
            self._attend(held)
            self._gather(held, self.places.every_X, self.num_rows, with_pre_proj=False)
            h_FMD = self.places.h_CD[: self.num_rows].unflatten(0, (-1, self.num_tokens))
            pre_proj_FMD = self.pre_proj_XD.unflatten(0, (-1, self.num_tokens))
        self._move(held, None)
        self.places.embeddings_FE[: self.num_frames].copy_(vit.head(vit.close(self.last, h_FMD, pre_proj_FMD)))

    # Their parts.

    def _base(self, held: int) -> Tensor:
        """Return where the rows that boundary `held` left are found; before the first layer, where they are."""
        return self.places.every_X if held < 0 else self.places.base_2X[held % 2]

    def _attend(self, held: int, query_FD: Tensor | None = None, out: Tensor | None = None) -> None:
        """Attend to the rows that boundary `held` left: all do, or with a query CLS alone."""
        shape, places, patches, width = self.vit.shape, self.places, self.vit.shape.num_patches, self.width
        is_last = query_FD is not None
        at = self.anchors[max(held, 0)]
        rank, behind_q = 0 if held < 0 else self.rank, 0 if is_last else 1
        block_r = _power(rank)
        ups_4DR = self.addon.restoration(max(held, 0)).up_4DR
        # Of q, k, v, or of k, v alone; of h, q, k, v before them.
        hidden_XQ, ups_pDR = places.hidden_XQ[:, behind_q * rank :], ups_4DR[2 - behind_q :]
        ahead = _ahead(at.projected_BNC, self.stored_XC)
        strides = (self.stored_XC.stride(0), at.projected_BNC.stride(1))
        key_value_XC = self.stored_XC[:, behind_q * width :]
        if held >= 0:
            columns = min(FILL_COLUMNS, _power(width))
            kernels.fill_kernel[(triton.cdiv(self.num_rows, FILL_ROWS), triton.cdiv(width, columns), 2)](
                key_value_XC, hidden_XQ[:, behind_q * rank :], ups_pDR[behind_q:], self._base(held), places.stream_F,
                places.filled_XC, ahead, *strides, hidden_XQ.stride(0), self.num_rows, self.num_tokens,
                WIDTH=width, RANK=rank, BLOCK_R=block_r, BLOCK_T=FILL_ROWS, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
            key_value_XC = places.filled_XC
        tiles = 0 if is_last else self.tiles
        kernels.attend_kernel[(self.num_frames * shape.num_heads, tiles + int(self.prefix > 0))](
            self.stored_XC, hidden_XQ, ups_pDR, self._base(held), places.stream_F, key_value_XC,
            query_FD if is_last else self.pre_proj_XD, self.pre_proj_XD if out is None else out,
            places.scores, places.stats, ahead, *strides, hidden_XQ.stride(0), key_value_XC.stride(0),
            shape.head_dim**-0.5 * LOG2_E, self.num_tokens,
            WIDTH=width, HEADS=shape.num_heads, HEAD_DIM=shape.head_dim, BLOCK_D=_power(shape.head_dim),
            RANK=rank, BLOCK_R=block_r, PREFIX=self.prefix, PREFIX_T=PREFIX_ROWS, PATCHES=patches,
            TILES=tiles, LAST=is_last, BLOCK_M=min(QUERIES_AT_ONCE, _power(patches)),
            BLOCK_N=min(KEYS_AT_ONCE, _power(patches)), STAGES=ATTENTION_STAGES, num_warps=ATTENTION_WARPS,
        )  # fmt: skip

    def _choose(self, boundary: int, num_given: int) -> None:
        shape, places, at, gate = self.vit.shape, self.places, self.anchors[boundary], self.engine.policy.gate
        decision = self.addon.decisions[boundary]
        assert isinstance(decision, Decision)
        is_log = decision.numbers == "log"
        nothing = places.norm_X
        masks_RbA = self.engine.masks_RbA
        tiles = 1 if self.prefix else self.tiles
        steps = [(step.candidates, step.kind) for step in GROUPS[self.size]]
        code_of = {PREVIOUS: 0} | {step.frame: 1 + index for index, step in enumerate(GROUPS[self.size])}
        later: dict[str, int] = {}
        for index, name in enumerate(("SECOND", "THIRD", "FOURTH"), start=1):
            candidates, kind = steps[index] if index < len(steps) else ((PREVIOUS,), 0)
            codes = [code_of[one] for one in candidates]
            later |= {f"{name}_A": codes[0], f"{name}_B": codes[-1], f"{name}_KIND": kind}
        kernels.choose_kernel[(self.plan.num_streams, triton.cdiv(self.num_tokens, CHOICE_TOKENS))](
            self.pre_proj_XD, at.pre_proj_BND, at.norm_BN, places.streams_S, places.scores, places.stats,
            places.codec_FA, nothing if masks_RbA is None else masks_RbA, places.draws_F,
            decision.enter.weight, decision.enter.bias, decision.leave.weight, decision.leave.bias,
            decision.shift_3 if is_log else nothing, decision.scale_3 if is_log else nothing,
            places.base_2X[boundary % 2], places.source_X, places.rows_C, places.needed_b,
            places.reuse_FbN.view(torch.int8), places.norm_X,
            boundary, num_given, gate.bias if isinstance(gate, HardGate) else 0.0, self.num_tokens,
            WIDTH=self.width, HEADS=shape.num_heads, BLOCK_H=_power(shape.num_heads * tiles), TILES=tiles,
            PREFIX=self.prefix, PATCHES=shape.num_patches, FORCED=masks_RbA is not None, LOG=is_log,
            UNITS=decision.enter.out_features, BLOCK_U=_power(decision.enter.out_features), BOUNDARIES=self.last,
            LEAST=LEAST_CHANGE, GROUP=self.size, **later, BLOCK_T=CHOICE_TOKENS, BLOCK_C=min(256, _power(self.width)),
        )  # fmt: skip

    def _gather(self, held: int, rows_C: Tensor, num_given: int, *, with_pre_proj: bool) -> None:
        """Bring the layer's input of some rows together, and what attention made of them."""
        places, rank, at = self.places, 0 if held < 0 else self.rank, self.anchors[max(held, 0)]
        anchors_h = self.stored_h_XD if at.h_BND is None else at.h_BND
        columns = min(GATHER_COLUMNS, _power(self.width))
        kernels.gather_kernel[(triton.cdiv(num_given, GATHER_ROWS), triton.cdiv(self.width, columns))](
            self.stored_h_XD, places.hidden_XQ, self.addon.restoration(max(held, 0)).up_4DR,
            self._base(held), places.stream_F, self.pre_proj_XD, rows_C, places.h_CD, places.gathered_CD,
            _ahead(anchors_h, self.stored_h_XD), num_given, self.num_tokens, places.hidden_XQ.stride(0),
            WIDTH=self.width, RANK=rank, BLOCK_R=_power(rank), WITH_PRE_PROJ=with_pre_proj,
            BLOCK_T=GATHER_ROWS, BLOCK_C=columns,
        )  # fmt: skip

    def _move(self, held: int, boundary: int | None) -> None:
        """Make first frames anchors: what boundary `held` left of them, and what attention at `boundary` made."""
        places, saved = self.places, self.places.saved
        states, kept = self.anchors[max(held, 0)], saved[max(held, 0)]
        other, kept_other = self.anchors[boundary or 0], saved[boundary or 0]
        of_pre_proj_bBN, of_states_bBN = places.seen_2bBN
        with_h = states.h_BND is not None
        kernels.move_kernel[(self.num_tokens, self.plan.num_streams)](
            self._base(held), self.stored_XC, self.stored_h_XD, states.projected_BNC,
            states.h_BND if with_h else states.pre_proj_BND, kept.projected_BNC,
            kept.h_BND if with_h else kept.pre_proj_BND, of_states_bBN[max(held, 0)],
            self._base(boundary or 0), self.pre_proj_XD, places.norm_X, other.pre_proj_BND, other.norm_BN,
            kept_other.pre_proj_BND, kept_other.norm_BN, of_pre_proj_bBN[boundary or 0],
            places.streams_S, self.stored_XC.stride(0), states.projected_BNC.stride(1), self.num_tokens,
            GROUP=self.size, WIDTH=self.width, CHANNELS=self.num_parts(max(held, 0)) * self.width, WITH_H=with_h,
            WITH_STATES=held >= 0, WITH_PRE_PROJ=boundary is not None, BLOCK=min(1024, _power(self.width)),
        )  # fmt: skip

    def _close(self, boundary: int, num_given: int) -> None:
        """Put the gathered rows through the layer, and store what the next one needs of them."""
        vit, places = self.vit, self.places
        layer, following = vit.layer(boundary), vit.layer(boundary + 1)
        h_CD = torch.addmm(places.h_CD[:num_given], places.gathered_CD[:num_given], layer.out_weight.mT)
        normed_CD = places.normed_CD[:num_given]
        self._norm(h_CD, layer.out_bias, layer.norm2_weight, layer.norm2_bias, normed_CD)
        hidden_CM = vit.activate(torch.addmm(layer.fc1_bias, normed_CD, layer.fc1_weight.mT))
        out_CD = self.stored_h_XD[:num_given]
        torch.addmm(h_CD, hidden_CM, layer.fc2_weight.mT, out=out_CD)
        self._norm(out_CD, layer.fc2_bias, following.norm1_weight, following.norm1_bias, normed_CD)
        channels = self.num_parts(boundary) * self.width
        weight_CD, bias_C = following.qkv_weight[-channels:], following.qkv_bias[-channels:]
        torch.addmm(bias_C, normed_CD, weight_CD.mT, out=self.stored_XC[:num_given, :channels])

    def _norm(self, x_CD: Tensor, bias_D: Tensor, weight_D: Tensor, norm_bias_D: Tensor, out_CD: Tensor) -> None:
        kernels.norm_kernel[(len(x_CD),)](
            x_CD, bias_D, weight_D, norm_bias_D, out_CD, self.vit.shape.layer_norm_eps,
            WIDTH=self.width, BLOCK=_power(self.width),
        )  # fmt: skip

    def keys_weighed(self) -> int:
        return 1 if self.vit.shape.has_cls else self.num_tokens


def query_tiles(num_patches: int) -> int:
    """Return how many programs share the patches of a frame as queries of one head."""
    tiles: int = triton.cdiv(num_patches, min(QUERIES_AT_ONCE, _power(num_patches)))
    return tiles


def _ahead(anchors: Tensor, stored: Tensor) -> int:
    """Return how many values lie between the starts of two tensors, so that a kernel reads both from one of them."""
    return (anchors.data_ptr() - stored.data_ptr()) // stored.element_size()


def _beside(seen: Tensor, like: Tensor) -> Tensor:
    """Return flags by token beside what is kept of each."""
    return (seen if seen.ndim == like.ndim else seen[..., None]).bool()


def _power(number: int) -> int:
    """Return the power of two from 16 on that holds a number."""
    return max(16, 1 << (number - 1).bit_length()) if number > 0 else 16
