"""What the engines share that give a layer's products a number of rows before it is known how many are computed.

An engine is `fixed_capacity`'s, of plain steps, or `fused_capacity`'s, of Triton's kernels. Each works in memory of
fixed places, so that steps can be recorded once and replayed (cuda_graphs.py); whether a call had rows enough is seen
when its results are read, and then the call is redone with all rows.

Shapes: S streams of the pass, F frames of the pass, N tokens (prefix first), A patches, L layers, b = L - 1 boundaries,
Q ranks of all corrections side by side (h, q, k, v; before the last layer k, v), E embedding width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from reuse_models.reusevit.addon import CORRECTED, ReusePolicy
from reuse_models.reusevit.anchors import Anchors, start_anchors
from reuse_models.reusevit.codec_net import CODEC_CHANNELS, CODEC_STEPS
from reuse_models.reusevit.engines.cuda_graphs import Recorded
from reuse_models.reusevit.frame_order import GROUP_SIZE
from reuse_models.reusevit.gate import ForcedGate, HardGate
from reuse_models.reusevit.reference import Pass, PassResult, Plan, plan_of
from reuse_models.tower.vit import Vit

SIZES_PER_HALVING = 8
"""Sizes lie 9 % apart: rounding up costs half of that on average."""
HEADROOM = 1.05
REMEMBERED = 16
"""Groups."""
MULTIPLE = 8
"""Of rows: what products on a GPU like."""


class Places:
    """The memory that the steps of passes of up to `num_streams` streams read from and leave results in."""

    def __init__(self, vit: Vit, num_streams: int, records: bool) -> None:
        shape, like = vit.shape, vit.position
        side, last = shape.patches_per_side, shape.num_layers - 1
        self.num_frames = GROUP_SIZE * num_streams
        self.num_rows = self.num_frames * shape.num_tokens
        self.pixels_F3HW = like.new_zeros(self.num_frames, 3, shape.image_px, shape.image_px)
        self.history_F4TPP = like.new_zeros(self.num_frames, CODEC_CHANNELS, CODEC_STEPS, side, side)
        self.streams_S = torch.zeros(num_streams, dtype=torch.int64, device=like.device)
        self.draws_F = torch.zeros(self.num_frames, dtype=torch.int64, device=like.device)
        self.codec_FA = like.new_zeros(self.num_frames, shape.num_patches)
        self.reuse_FbN = torch.zeros(self.num_frames, last, shape.num_tokens, dtype=torch.bool, device=like.device)
        self.embeddings_FE = like.new_zeros(self.num_frames, shape.embed_dim)
        self.recorded = Recorded(records)

    def tensors(self) -> list[Tensor]:
        """Return all that is held, temporaries of recordings left out."""
        return [x for x in vars(self).values() if isinstance(x, Tensor)]

    @property
    def num_bytes(self) -> int:
        """Bytes held; temporaries of recordings left out."""
        return sum(x.untyped_storage().nbytes() for x in self.tensors())


class Capacities:
    """How many rows a layer's products are given before the host can know how many are computed.

    At each boundary the most that recent groups needed, as a share of all rows, with some headroom, rounded up among a
    few sizes, so that few recordings serve many groups. Before anything is known, and where it fell short, all rows.
    """

    def __init__(self, num_boundaries: int) -> None:
        self._num_boundaries = num_boundaries
        self._needed: deque[tuple[float, ...]] = deque(maxlen=REMEMBERED)

    @property
    def is_known(self) -> bool:
        """Whether less than all rows may be given, so that it may fall short."""
        return bool(self._needed)

    def rows(self, num_rows: int) -> tuple[int, ...]:
        """Return the rows of each boundary for a pass of `num_rows`."""
        if not self._needed:
            return (num_rows,) * self._num_boundaries
        return tuple(capacity(max(shares), num_rows) for shares in zip(*self._needed, strict=True))

    def note(self, needed: Sequence[int], num_rows: int) -> None:
        """Remember the rows that a pass of `num_rows` needed at each boundary."""
        self._needed.append(tuple(rows / num_rows for rows in needed))

    def forget(self) -> None:
        """Give all rows until something is noted."""
        self._needed.clear()


def capacity(share: float, num_rows: int) -> int:
    """Return the smallest size that holds a share of the rows and the headroom; never more than all rows."""
    needed = min(max(share * HEADROOM, 1 / num_rows), 1.0)
    steps = math.floor(-math.log2(needed) * SIZES_PER_HALVING)
    size = max(math.ceil(num_rows * 2 ** (-steps / SIZES_PER_HALVING)), math.ceil(needed * num_rows))
    return min(-(-size // MULTIPLE) * MULTIPLE, num_rows)


P = TypeVar("P", bound=Places)


class GivenRows(ABC, Generic[P]):
    """An engine: a tower, how reuse goes in it, and what is known about how much is computed."""

    one_size: ClassVar[bool] = False
    """Whether the groups of a pass must have one size."""

    def __init__(self, vit: Vit, policy: ReusePolicy) -> None:
        self.vit, self.policy = vit, policy
        device = vit.position.device
        self.capacities = Capacities(vit.shape.num_layers - 1)
        # Other gates may keep notes on the host, which a replay would not.
        self.records = device.type == "cuda" and isinstance(policy.gate, HardGate | ForcedGate)
        self.masks_RbA: Tensor | None = None
        if isinstance(policy.gate, ForcedGate) and policy.gate.choice == "random":
            self.masks_RbA = policy.gate.masks_RbA.to(device)
        self.work_of: dict[tuple[int, ...], list[Tensor]] = {}
        self._free: dict[int, list[tuple[Anchors, P]]] = {}

    @abstractmethod
    def new_places(self, num_streams: int, streams_per_pass: int) -> P:
        """Return memory for `num_streams` streams, of which so many go together."""

    @abstractmethod
    def save(self, anchors: Anchors, places: P) -> None:
        """Keep the anchors as they are, for `restore`."""

    def keep(self, anchors: Anchors, places: P, streams: Sequence[int]) -> None:
        """Be told that something other than a pass is about to overwrite these streams' anchors."""

    @abstractmethod
    def restore(self, anchors: Anchors, places: P) -> None:
        """Undo what was done to the anchors since `save`."""

    @abstractmethod
    def steps(self, anchors: Anchors, places: P, plan: Plan, groups: Pass) -> GivenRun[P]:
        """Return the steps of a pass."""

    def group(self, anchors: Anchors, places: P, groups: Pass) -> PassResult:
        """Take the next group of each stream through the tower and move the anchors on; see `were_enough`."""
        assert len(set(groups.sizes)) == 1 or not self.one_size
        plan = plan_of(groups.sizes, self.vit.shape.num_tokens, self.vit.position.device)
        given = self.capacities.rows(plan.anchor_FN.numel())
        self.load(places, groups)
        run = self.steps(anchors, places, plan, groups)
        # Streams that end at different times make layouts that do not come again.
        do = places.recorded.run if len(set(groups.sizes)) == 1 else _now
        do((run.key, "enter"), run.enter)
        for boundary, num_given in enumerate(given):
            do((run.key, boundary, num_given), partial(run.layer, boundary, num_given))
        do((run.key, "leave"), run.leave)
        return run.result(given)

    def take(self, num_streams: int, streams_per_pass: int) -> tuple[Anchors, P]:
        """Return anchors and places for `num_streams` streams: given back ones, since recordings know their address."""
        free = self._free.get(num_streams)
        if free:
            return free.pop()
        with torch.inference_mode(False):  # what is made within may not be written to outside
            anchors = start_anchors(self.vit, num_streams)
            return anchors, self.new_places(num_streams, streams_per_pass)

    def give_back(self, anchors: Anchors, places: P) -> None:
        """Take back what no stream uses any more."""
        self._free.setdefault(len(anchors[0].norm_BN), []).append((anchors, places))

    def were_enough(self, results: Sequence[PassResult]) -> bool:
        """Say whether all computed rows of these passes had a place, and learn from it; waits for the device."""
        needed_b = torch.stack([(~one.reuse_FbN).sum((0, 2)) for one in results]).tolist() if results else []
        enough = all(
            rows <= given
            for one, needed in zip(results, needed_b, strict=True)
            for rows, given in zip(needed, one.given, strict=True)
        )
        if enough:
            for one, needed in zip(results, needed_b, strict=True):
                self.capacities.note(needed, one.reuse_FbN.shape[0] * one.reuse_FbN.shape[2])
        else:
            self.capacities.forget()
        return enough

    def load(self, places: P, groups: Pass) -> None:
        num_frames = len(groups.pixels_F3HW)
        places.pixels_F3HW[:num_frames].copy_(groups.pixels_F3HW)
        places.history_F4TPP[:num_frames].copy_(groups.history_F4TPP)
        put(groups.streams, places.streams_S)
        if self.masks_RbA is not None:
            assert isinstance(self.policy.gate, ForcedGate)
            put(self.policy.gate.draws(groups.frames), places.draws_F)


class GivenRun(ABC, Generic[P]):
    """One group of each stream on its way through the layers: views of fixed memory, and the steps."""

    def __init__(self, engine: GivenRows[P], anchors: Anchors, places: P, plan: Plan, groups: Pass) -> None:
        self.engine, self.anchors, self.places, self.plan, self.frames = engine, anchors, places, plan, groups.frames
        self.key: Hashable = groups.sizes
        """What recordings of its steps are known by."""
        self.vit, self.addon, self.reference_state = engine.vit, engine.policy.addon, engine.policy.reference_state
        shape = self.vit.shape
        self.num_tokens, self.width, self.last = shape.num_tokens, shape.width, shape.num_layers - 1
        self.prefix = shape.num_prefix
        self.rank = self.addon.shape.restoration_rank
        self.num_rows = plan.num_frames * self.num_tokens
        self.streams_S = places.streams_S[: plan.num_streams]

    @abstractmethod
    def enter(self) -> None:
        """The tower's input."""

    @abstractmethod
    def layer(self, boundary: int, num_given: int) -> None:
        """Attention of layer `boundary`, the choice behind it, and what is computed up to the next attention."""

    @abstractmethod
    def leave(self) -> None:
        """The last layer."""

    @abstractmethod
    def keys_weighed(self) -> int:
        """Of each token: with how many queries importance multiplies its key, a head of D numbers counting once."""

    def result(self, given: tuple[int, ...]) -> PassResult:
        """Return what the steps left, in memory of its own."""
        num_frames = self.plan.num_frames
        reuse_FbN = self.places.reuse_FbN[:num_frames].clone()
        executed_Fb = _with_padding(self.num_tokens - reuse_FbN.sum(-1), given)
        work = self.engine.work_of.get(self.plan.sizes)
        if work is None:
            self.engine.work_of[self.plan.sizes] = work = self._known_work()
        restored_Fb, compared_Fb, weighed_Fb = work
        # h of what the next layer computes; of all that the last one does, where that is more than CLS.
        in_last = 0 if self.vit.shape.has_cls else self.num_tokens
        later_Fb = torch.nn.functional.pad(executed_Fb[:, 1:], (0, 1), value=in_last)
        return PassResult(
            embeddings_FE=self.places.embeddings_FE[:num_frames].clone(),
            reuse_FbN=reuse_FbN,
            executed_Fb=executed_Fb,
            restored_Fb=torch.add(restored_Fb, later_Fb, alpha=self.rank),
            compared_Fb=compared_Fb,
            weighed_Fb=weighed_Fb,
            given=given,
        )

    def _known_work(self) -> list[Tensor]:
        """Return what the sizes of the groups decide: rows restored, pairs compared and pairs weighed, each [F, b]."""
        ranks = []
        for boundary in range(self.last):
            num_parts, num_h = self.num_parts(boundary), int(self.anchors[boundary].h_BND is not None)
            of_anchors = self.num_ranks(boundary) + self.rank * num_h * int(self.reference_state == "grouped")
            of_all = self.num_ranks(boundary) + self.rank * num_parts
            ranks.append((of_all, of_anchors))
        handed, every = self.plan.handed, range(self.plan.num_frames)
        restored = [[of_all + of_anchors * int(frame in handed) for of_all, of_anchors in ranks] for frame in every]
        compared = [[number] * self.last for number in self.plan.compared]
        weighed = [[self.keys_weighed()] * self.last for _ in every]
        device = self.plan.slot_F.device
        return [self.num_tokens * torch.tensor(rows, device=device) for rows in (restored, compared, weighed)]

    # What restoration is made of.

    def num_parts(self, boundary: int) -> int:
        """Of q, k, v: before a last layer for CLS k, v alone."""
        return 2 if self.anchors[boundary].h_BND is None else 3

    def num_ranks(self, boundary: int) -> int:
        """Q: with h, but before a last layer for CLS k, v alone."""
        return self.rank * (2 if self.anchors[boundary].h_BND is None else len(CORRECTED))

    def down(self, boundary: int) -> Tensor:
        down_QD = self.addon.restoration(boundary).down_QD
        return down_QD[len(down_QD) - self.num_ranks(boundary) :]


def put(values: Sequence[int], out_X: Tensor) -> None:
    """Write a few numbers to a device without waiting for it."""
    on_host_X = torch.tensor(values, dtype=out_X.dtype, pin_memory=out_X.is_cuda)
    out_X[: len(values)].copy_(on_host_X, non_blocking=True)


def _now(_: Hashable, step: Callable[[], None]) -> None:
    step()


def _with_padding(computed_Fb: Tensor, given: tuple[int, ...]) -> Tensor:
    """Return the rows that went through the products, those computed for nothing spread evenly over frames."""
    num_frames = len(computed_Fb)
    given_b = torch.empty_like(computed_Fb[0])
    put(given, given_b)
    spare_b = given_b - computed_Fb.sum(0)
    frame_F1 = torch.arange(num_frames, device=computed_Fb.device)[:, None]
    return computed_Fb + spare_b // num_frames + (frame_F1 < spare_b % num_frames)
