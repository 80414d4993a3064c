"""ReuseViT behind the interface of all methods: streams in, groups through the engine, frames out in display order.

GOPs and groups are those of `reuse_models/method.py`; an *anchor* is what the last group's first computed frame left,
patch by patch as last computed; an *add-on* is ReuseViT's trained weights beside the tower. Decided is in gate.py, on
what reference.py finds most similar; the engines apply it, and engines/fused_kernels.py repeats both for GPUs.

Shapes: B streams, F frames, L layers, b = L - 1 boundaries, N tokens (prefix first), A patches, E embedding width, P
patches a side, K units of a part.
"""

from __future__ import annotations

import importlib.util
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from reuse_models.artifact.weights import VARIANTS, Variant, addon_from_state, read_checkpoint
from reuse_models.baselines.key_frames import keep_key_frames
from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Method, Work
from reuse_models.reusevit.addon import CORRECTED, Addon, AddonShape, ReusePolicy, addon_shape, check_addon, load_addon
from reuse_models.reusevit.anchors import Anchors, compute_dense, start_anchors, tensors_of
from reuse_models.reusevit.codec_net import CODEC_STEPS, codec_history, codec_net_macs
from reuse_models.reusevit.engines.compacted import CompactedRun
from reuse_models.reusevit.engines.fixed_capacity import FixedCapacity
from reuse_models.reusevit.engines.given_rows import GivenRows, Places
from reuse_models.reusevit.engines.token_memory import ENGINE_STATES, EngineState
from reuse_models.reusevit.engines.workspace import Workspace
from reuse_models.reusevit.frame_order import GROUPS, check_refresh
from reuse_models.reusevit.gate import FORCED_CHOICES, ForcedChoice, ForcedGate, FrameId, Gate, HardGate, check_rate
from reuse_models.reusevit.reference import Pass, PassResult
from reuse_models.reusevit.scheduler import HeldFrame, Scheduler, StreamState, Turn
from reuse_models.streams import check_chunk, map_on_cores, shares_of_cores
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

STREAMS_PER_PASS = 16
"""Bounds the buffers of one pass; more streams than this take turns."""

Inference = Literal["auto", "compacted", "fixed"]
"""How computed tokens go through the products: as many as there are (compacted), or a number given beforehand, so that
no layer waits for the host (fixed). `auto` is fixed on a GPU, compacted elsewhere. They differ by rounding."""
INFERENCES: tuple[Inference, ...] = get_args(Inference)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReuseVitConfig:
    """Reuse what a trained decision allows, and restore it."""

    method: ClassVar[str] = "reusevit"

    weights: str | None = None
    """Add-on weights: a .safetensors of ours, or a published .ckpt. None is an untrained add-on, for measuring."""
    variant: Variant = "as_trained"
    """Of a published .ckpt: how its decisions are laid to boundaries."""
    name: str = ""
    """Names the weights in tables, such as `target=0.8`; their file's name unless given."""
    refresh: int | None = None
    """Frames after which a dense one begins a new GOP; None for never."""
    reference_state: EngineState = "anchor"
    """What a frame finds at a reference that reused the patch itself."""
    decision_bias: float = 0.0
    """Added to every reuse logit: the runtime knob, calibrated on validation clips."""
    skip: float = 0.0
    """What a frame must save to be embedded at all, as under `key_frames`; 0 embeds every frame."""
    forced_rate: float | None = None
    """Reuse this share of tokens whatever the decision says, for measuring speed apart from training."""
    forced_choice: ForcedChoice = "similar"
    """Which tokens a forced rate takes: those that changed least, or random ones."""
    restoration_rank: int | None = None
    """Of an untrained add-on; in proportion to the tower unless given."""
    inference: Inference = "auto"
    """Which engine runs it."""

    def __post_init__(self) -> None:
        check_refresh(self.refresh)
        if self.forced_rate is not None:
            check_rate(self.forced_rate)
        if not 0 <= self.skip < math.inf:
            raise ValueError(f"skip: got {self.skip}, expected a number from 0 on; 0 embeds every frame")
        for name, got, known in (
            ("reference_state", self.reference_state, ENGINE_STATES),
            ("variant", self.variant, VARIANTS),
            ("forced_choice", self.forced_choice, FORCED_CHOICES),
            ("inference", self.inference, INFERENCES),
        ):
            if got not in known:
                raise ValueError(f"reusevit {name}: got {got!r}, expected one of {', '.join(known)}; choose one")

    @property
    def setting(self) -> str:
        name = self.name or ("untrained" if self.weights is None else Path(self.weights).stem)
        parts = [name]
        if self.forced_rate is not None:
            parts.append(f"forced={self.forced_rate:g} {self.forced_choice}")
        if self.weights is None and self.name:
            parts.append("untrained")
        if self.weights is not None and self.variant != "as_trained":
            parts.append(self.variant)
        if self.reference_state != "anchor":
            parts.append(self.reference_state)
        if self.decision_bias:
            parts.append(f"bias={self.decision_bias:+.3g}")
        if self.refresh is not None:
            parts.append(f"R={self.refresh}")
        if self.skip:
            parts.append(f"skip={self.skip:g}")
        return " ".join(parts)

    def build(self, vit: Vit) -> Method:
        method = ReuseVit(self, vit, self.addon(vit))
        return keep_key_frames(method, self.skip) if self.skip else method

    def addon(self, vit: Vit) -> Addon:
        """Return the weights on the tower's device and type.

        Raises:
            ValueError: The weights are missing, broken or another tower's.
        """
        shape = addon_shape(vit.shape, restoration_rank=self.restoration_rank)
        if self.weights is None:
            # The state of the global generator is the caller's.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                addon = Addon(shape)
        elif self.weights.endswith(".ckpt"):
            addon = addon_from_state(read_checkpoint(Path(self.weights)), vit.shape, self.variant)
        else:
            addon = load_addon(Path(self.weights))
            check_addon(addon.shape, vit.shape, f"add-on weights {self.weights}")
        return addon.beside(vit.position).eval().requires_grad_(False)


@dataclass(slots=True, weakref_slot=True)
class ReuseVitMemory:
    """Anchors and states of B streams; workspaces and fixed places are kept for their memory alone."""

    anchors: Anchors
    states: list[StreamState]
    workspaces: dict[int, Workspace] = field(default_factory=dict)
    fixed_places: Places | None = None

    @property
    def bytes_per_stream(self) -> int:
        """Bytes that outlive a call, per stream; held frames left out."""
        return sum(x.untyped_storage().nbytes() for x in tensors_of(self.anchors)) // max(len(self.states), 1)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that are written anew by every group."""
        fixed = 0 if self.fixed_places is None else self.fixed_places.num_bytes
        return fixed + sum(workspace.num_bytes for workspace in self.workspaces.values())


@dataclass(frozen=True, slots=True)
class _Finished:
    """Frames that were completed together."""

    frames: Sequence[FrameId]
    embeddings_FE: Tensor
    result: PassResult | None
    """None for dense frames."""


class ReuseVit:
    """The method. Streams are independent, so each core takes its own and none waits for another."""

    def __init__(self, config: ReuseVitConfig, vit: Vit, addon: Addon, gate: Gate | None = None) -> None:
        self.vit, self.addon = vit, addon
        if gate is None and config.forced_rate is not None:
            gate = ForcedGate(config.forced_rate, config.forced_choice, vit.shape)
        gate = gate or HardGate(addon.decisions, config.decision_bias)
        self._decides = isinstance(gate, HardGate)
        self.policy = policy = ReusePolicy(addon, gate, config.reference_state)
        on_gpu = vit.position.device.type == "cuda"
        is_fixed = config.inference == "fixed" or (config.inference == "auto" and on_gpu)
        self.fixed = fixed_engine(vit, policy) if is_fixed else None
        one_size = self.fixed is not None and self.fixed.one_size
        self.scheduler = Scheduler(config.refresh, one_size=one_size)
        self._dense_work = dense_work(vit.shape)

    def start(self, num_streams: int) -> ReuseVitMemory:
        states = [StreamState() for _ in range(num_streams)]
        if self.fixed is None:
            return ReuseVitMemory(start_anchors(self.vit, num_streams), states)
        anchors, fixed_places = self.fixed.take(num_streams, STREAMS_PER_PASS)
        memory = ReuseVitMemory(anchors, states, fixed_places=fixed_places)
        weakref.finalize(memory, self.fixed.give_back, anchors, fixed_places).atexit = False
        return memory

    def encode(self, chunk: Chunk, memory: ReuseVitMemory) -> Encoded:
        """Embed the next frames, as `Method` says; up to three wait for their group unless their stream has ended."""
        check_chunk(chunk, self.vit, len(memory.states))
        if chunk.codec is None:
            raise ValueError("reusevit: got frames without codec grids, expected one each; decode them with the frames")
        for state, ended in zip(memory.states, chunk.ended, strict=True):
            state.ended = ended
        self._take(memory.states, chunk.pixels, chunk.codec)
        if self.fixed is None:
            return self._encoded(self._advance(memory), (), memory)
        return self._encoded(*self._advance_fixed(self.fixed, memory), memory)

    def _advance(self, memory: ReuseVitMemory) -> list[_Finished]:
        """Advance all streams as far as their frames go."""
        finished: list[_Finished] = []
        inference = torch.is_inference_mode_enabled()

        def run(part: int, streams: Sequence[int]) -> None:
            # A thread has modes of its own.
            with torch.inference_mode(inference), torch.no_grad():
                for start in range(0, len(streams), STREAMS_PER_PASS):
                    some = streams[start : start + STREAMS_PER_PASS]
                    while turns := self.scheduler.schedule(memory.states, some):
                        for turn in turns:
                            done = self._dense(turn, memory) if turn.is_dense else self._group(part, turn, memory)
                            finished.append(done)

        shares = [list(range(len(memory.states)))]
        if self.fixed is None:
            frames = [self.scheduler.num_ready(state) for state in memory.states]
            shares = shares_of_cores(frames, self.vit.position.device)
        with map_on_cores(len(shares)) as each:
            list(each(run, range(len(shares)), shares))
        return finished

    def _advance_fixed(self, fixed: GivenRows[Any], memory: ReuseVitMemory) -> tuple[list[_Finished], list[_Finished]]:
        """Advance on the rows given; once more, on all rows, if they were too few: then also return what is undone."""
        assert memory.fixed_places is not None
        may_be_too_few = fixed.capacities.is_known
        states = [state.copy() for state in memory.states] if may_be_too_few else []
        if may_be_too_few:
            fixed.save(memory.anchors, memory.fixed_places)
        undone: list[_Finished] = []
        while True:
            finished = self._advance(memory)
            if fixed.were_enough([one.result for one in finished if one.result is not None]):
                return finished, undone
            undone += finished
            fixed.restore(memory.anchors, memory.fixed_places)
            memory.states[:] = states

    def _take(self, states: Sequence[StreamState], pixels: Sequence[Tensor], codec: Sequence[Tensor]) -> None:
        """Hold frames until their group is full; the codec grids of streams of one length are prepared at once."""
        of_length: dict[int, list[int]] = {}
        for stream, pixels_F3HW in enumerate(pixels):
            of_length.setdefault(len(pixels_F3HW), []).append(stream)
        of_length.pop(0, None)
        for streams in of_length.values():
            codec_SF4PP = torch.stack([codec[stream] for stream in streams]).to(self.vit.position)
            nothing_T4PP = codec_SF4PP.new_zeros(CODEC_STEPS - 1, *codec_SF4PP.shape[2:])
            before = [states[stream].before_T4PP for stream in streams]
            before_ST4PP = torch.stack([nothing_T4PP if one is None else one for one in before])
            histories = codec_history(before_ST4PP, codec_SF4PP).flatten(0, 1).unbind()
            lasts = torch.cat([before_ST4PP, codec_SF4PP], dim=1)[:, 1 - CODEC_STEPS :].clone().unbind()
            num_frames = codec_SF4PP.shape[1]
            for index, (stream, last_T4PP) in enumerate(zip(streams, lasts, strict=True)):
                of_stream = histories[index * num_frames : (index + 1) * num_frames]
                frames_F3HW = pixels[stream].to(self.vit.position.device)
                states[stream].held += map(HeldFrame, frames_F3HW.unbind(), of_stream)
                states[stream].before_T4PP = last_T4PP

    def _dense(self, turn: Turn, memory: ReuseVitMemory) -> _Finished:
        states = [memory.states[stream] for stream in turn.streams]
        if self.fixed is not None and self.fixed.capacities.is_known:
            assert memory.fixed_places is not None
            self.fixed.keep(memory.anchors, memory.fixed_places, turn.streams)
        pixels_S3HW = torch.stack([state.held[0].pixels_3HW for state in states])
        embeddings_SE = compute_dense(self.vit, memory.anchors, turn.streams, pixels_S3HW)
        frames = [(stream, state.next_frame) for stream, state in zip(turn.streams, states, strict=True)]
        self.scheduler.done(memory.states, turn)
        return _Finished(frames, embeddings_SE, None)

    def _group(self, part: int, turn: Turn, memory: ReuseVitMemory) -> _Finished:
        states = [(stream, memory.states[stream], size) for stream, size in zip(turn.streams, turn.sizes, strict=True)]
        held = [state.held[step.frame] for _, state, size in states for step in GROUPS[size]]
        groups = Pass(
            streams=turn.streams,
            sizes=turn.sizes,
            pixels_F3HW=torch.stack([frame.pixels_3HW for frame in held]),
            history_F4TPP=torch.stack([frame.history_4TPP for frame in held]),
            frames=[(stream, state.next_frame + step.frame) for stream, state, size in states for step in GROUPS[size]],
        )
        if self.fixed is not None:
            assert memory.fixed_places is not None
            result = self.fixed.group(memory.anchors, memory.fixed_places, groups)
        else:
            workspace = memory.workspaces.get(part)
            if workspace is None or workspace.num_frames < len(held):
                num_ranks = (len(CORRECTED) - 1) * self.addon.shape.restoration_rank
                workspace = memory.workspaces[part] = Workspace(self.vit, num_ranks, len(held))
            result = CompactedRun(self.vit, self.policy, memory.anchors, workspace, groups).run()
        self.scheduler.done(memory.states, turn)
        return _Finished(groups.frames, result.embeddings_FE, result)

    def _encoded(self, finished: Sequence[_Finished], undone: Sequence[_Finished], memory: ReuseVitMemory) -> Encoded:
        """Put what was completed in display order, stream by stream; what was done twice counts twice."""
        shape, like = self.vit.shape, self.vit.position
        groups = [one for one in finished if one.result is not None]
        dense = [one for one in finished if one.result is None]
        frames = [frame for one in [*groups, *dense] for frame in one.frames]
        results = [one.result for one in groups if one.result is not None]
        num_dense = sum(len(one.frames) for one in dense)
        order = sorted(range(len(frames)), key=frames.__getitem__)
        lengths = [0] * len(memory.states)
        for stream, _ in frames:
            lengths[stream] += 1

        no_embeddings_0E = like.new_zeros(0, shape.embed_dim, dtype=torch.float32)
        embeddings_RE = torch.cat([no_embeddings_0E, *(one.embeddings_FE.float() for one in [*groups, *dense])])
        dense_RbN = torch.zeros(num_dense, shape.num_layers - 1, shape.num_tokens, dtype=torch.bool, device=like.device)
        reuse_RbN = torch.cat([*(result.reuse_FbN for result in results), dense_RbN])
        order_R = torch.tensor(order, dtype=torch.int64)
        on_device_R = order_R.to(like.device)
        embeddings = embeddings_RE[on_device_R].split(lengths)
        reuse = reuse_RbN[on_device_R].split(lengths)
        units = self._units(results, num_dense)
        if undone:  # of the same frames, in the same order
            again = self._units([one.result for one in undone if one.result is not None], num_dense)
            units = {name: units_RK + again[name] for name, units_RK in units.items()}
        # Side by side, they are put in order and cut once.
        widths = [units_RK.shape[1] for units_RK in units.values()]
        by_stream = torch.cat(list(units.values()), dim=1)[order_R].split(lengths)
        work = tuple(Work(dict(zip(units, one_GK.split(widths, dim=1), strict=True))) for one_GK in by_stream)
        return Encoded(embeddings, reuse, work, memory)

    def _units(self, results: Sequence[PassResult], num_dense: int) -> dict[str, Tensor]:
        """Return [R, K] units of each part, of frames of groups and then of dense ones."""
        dense = {name: units_1K.expand(num_dense, -1) for name, units_1K in self._dense_work.parts.items()}
        if not results:
            return dense
        groups = group_units(self.vit.shape, self.addon.shape, results, decides=self._decides)
        return {
            name: torch.cat([units_FK, dense.get(name, units_FK.new_zeros(num_dense, units_FK.shape[1]))])
            for name, units_FK in groups.items()
        }


def fixed_engine(vit: Vit, policy: ReusePolicy) -> GivenRows[Any]:
    """Return the engine for a GPU: of Triton's kernels where there is Triton and they serve, of plain steps elsewhere.

    On a CPU, kernels run in Triton's interpreter alone, which is for tests.
    """
    if vit.position.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        # Not everywhere is there a Triton.
        from reuse_models.reusevit.engines.fused_capacity import FusedCapacity, can_fuse  # noqa: PLC0415

        if can_fuse(vit, policy):
            return FusedCapacity(vit, policy)
    return FixedCapacity(vit, policy)


def group_units(
    shape: VitShape, addon: AddonShape, results: Sequence[PassResult], *, decides: bool
) -> dict[str, Tensor]:
    """Return units_FK of each part of `flops.PARTS`; a boundary is filed under the layer that it leads into.

    Frames are those of all results, in their order. A forced rate asks no decision: `decides` is False.
    """
    # One copy from the device for all.
    columns = zip(
        *((one.executed_Fb, one.restored_Fb, one.compared_Fb, one.weighed_Fb) for one in results), strict=True
    )
    computed_Fb, restored_Fb, compared_Fb, weighed_Fb = torch.stack([torch.cat(one) for one in columns]).cpu()
    num_tokens = shape.num_tokens
    one_F1 = torch.ones(len(computed_Fb), 1, dtype=torch.int64)
    none_F1 = torch.zeros_like(one_F1)
    asked_F1 = shape.num_last_queries * one_F1
    entered_FL = torch.cat([num_tokens * one_F1, computed_Fb], 1)
    closed_FL = torch.cat([computed_Fb, asked_F1], 1)
    tokens_Fb = torch.full_like(computed_Fb, num_tokens)
    decision_units = addon.decision_hidden if decides else 0
    return {
        "patch_embedding": one_F1 * shape.num_patches,
        # In the last layer of CLS alone; where it runs for all tokens, of those that are not reused.
        "query": torch.cat([entered_FL[:, :-1], one_F1 if shape.has_cls else entered_FL[:, -1:]], 1),
        "key_value": entered_FL,
        "attention": torch.cat([tokens_Fb * num_tokens, num_tokens * asked_F1], 1),
        "projection": closed_FL,
        "mlp": closed_FL,
        "pooling": asked_F1,
        "head": one_F1,
        "importance": torch.cat([none_F1, weighed_Fb], 1),
        "similarity": torch.cat([none_F1, compared_Fb], 1),
        "decision": torch.cat([none_F1, (tokens_Fb - shape.num_prefix) * decision_units], 1),
        "restoration": torch.cat([none_F1, restored_Fb], 1),
        "codec_net": one_F1 * codec_net_macs(shape.patches_per_side) * int(addon.codec),
    }
