"""What an encoding actor's memory comes to, and as many streams and actors as a machine has memory for.

    actor(S) = interpreter + max(2 tower, tower + batch + S (state + chunk) + passes(S))

of S streams in lockstep: the state of the method that keeps most, as its own `start` allocates it; a decoded batch, as
it arrives and as it is copied; a chunk of pixels, and again while groups of it are put together; and what a pass writes
anew. It counts on CPUs alone: a GPU's own memory holds the rest.

Shapes: L layers, N tokens, D width, M the MLP's width, h heads, P patches a side, S streams in lockstep.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dejavu.backbones.load import Backbone
from dejavu.cluster.cluster import PROCESS_BYTES, ClusterError, Pool, grows, memory_per_machine
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.embedding.worker_memory import tower_bytes
from dejavu.storage.setting import Setting, with_local_weights
from reuse_models.method import Method
from reuse_models.reusevit.frame_order import GROUP_SIZE
from reuse_models.streams import FRAMES_PER_BATCH
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.tower.without_weights import without_weights

PASS_WIDTHS = 12
"""D wide numbers a token that a pass writes anew: q, k, v, what is computed, and room for products."""


@dataclass(frozen=True, slots=True)
class ActorMemory:
    """The parts of the formula, in bytes."""

    tower: int
    batch: int
    state: int
    """Of a stream."""
    chunk: int
    """Of a stream."""
    frame: int
    """Of a frame in a pass."""
    attention: int
    """Of a stream, where a method keeps the matrix apart."""

    def total(self, streams: int) -> int:
        """Return what an actor takes with so many streams in lockstep."""
        passes = max(FRAMES_PER_BATCH, GROUP_SIZE * streams) * self.frame + streams * self.attention
        working = self.batch + streams * (self.state + self.chunk) + passes
        return PROCESS_BYTES + self.tower + max(self.tower, working)

    @property
    def reader(self) -> int:
        """What a task that decodes takes: its frames, and again as they are joined."""
        return PROCESS_BYTES + self.batch


def actor_memory(vit: Vit, frame_px: int, settings: Sequence[Setting], config: EmbedConfig) -> ActorMemory:
    """Return what an actor takes that embeds under all of these settings, one after the other."""
    shape = vit.shape
    pairs = shape.num_heads * shape.num_tokens**2
    frame_bytes = 3 * frame_px**2 + 16 * shape.num_patches + 8
    return ActorMemory(
        tower=tower_bytes(vit),
        batch=2 * config.batch_frames * frame_bytes,
        state=max((state_bytes(shape, setting) for setting in settings), default=0),
        chunk=2 * config.chunk_frames * 4 * 3 * shape.image_px**2,
        frame=4 * shape.num_tokens * (PASS_WIDTHS * shape.width + shape.mlp_width),
        attention=3 * 4 * pairs,
    )


def state_bytes(shape: VitShape, setting: Setting) -> int:
    """Return the bytes that a method keeps of one stream between frames, without allocating them."""
    with without_weights():
        tower = Vit(shape)
    # Real, if small: arithmetic that a method is built with would import PyTorch's compiler on the meta device.
    method: Method = with_local_weights(setting.config).build(tower)
    with torch.device("meta"):
        kept = {id(x.untyped_storage()): x for x in _tensors(method.start(1))}
    return sum(x.numel() * x.element_size() for x in kept.values())


def _tensors(memory: Any) -> Iterator[Tensor]:
    if isinstance(memory, Tensor):
        yield memory
    elif dataclasses.is_dataclass(memory):
        for field in dataclasses.fields(memory):
            yield from _tensors(getattr(memory, field.name))
    elif isinstance(memory, Mapping):
        yield from _tensors(list(memory.values()))
    elif isinstance(memory, list | tuple):
        for part in memory:
            yield from _tensors(part)


def shrink_to_memory(
    backbone: Backbone,
    settings: Sequence[Setting],
    embedding: EmbedContext,
    pool: Pool,
    usual_frames: float | None = None,
) -> tuple[EmbedContext, Pool]:
    """Take fewer streams, and then fewer actors, where machines have not the memory for as many; bound what waits.

    All actors of a machine and one reader have to fit into the smallest one. What is embedded is the same but for
    rounding. Decoded batches get a bound in the object store, where neither GPUs want all that readers can make nor the
    cluster grows: of `usual_frames` each, frames of a batch, or of the most that a batch may have.

    Raises:
        ClusterError: One actor of one stream does not fit.
    """
    if pool.gpus_per_actor:
        return embedding, pool
    machines = memory_per_machine()
    needs = actor_memory(backbone.vit, backbone.frame_px, settings, embedding.config)
    room = min(machines) - needs.reader
    on_each = -(-pool.num_actors // len(machines))
    streams = embedding.config.streams
    while streams > 1 and on_each * needs.total(streams) > room:
        streams -= 1
    on_each = min(on_each, room // needs.total(streams))
    if on_each < 1 and not grows():
        want, have = needs.reader + needs.total(1), min(machines)
        raise ClusterError(
            f"embed: got a machine of {have / 2**30:.1f} GiB, expected {want / 2**30:.1f} GiB for one actor of one "
            f"stream and a reader, {needs.tower / 2**30:.1f} GiB of it the tower; lower --embed.batch-frames and "
            "--embed.segment-frames, or use a smaller backbone"
        )
    num_actors = min(pool.num_actors, max(1, on_each) * len(machines))
    if (streams, num_actors) != (embedding.config.streams, pool.num_actors):
        wanted = f"{pool.num_actors} of {embedding.config.streams}"
        taken = f"{num_actors} actors of {streams} streams rather than {wanted}"
        print(f"  embed: {min(machines) / 2**30:.1f} GiB a machine: {taken}", flush=True)
    # Two batches for each actor, as Ray Data hands out, and one for each machine's reader; readers may use half of it.
    share = min(1.0, (usual_frames or math.inf) / embedding.config.batch_frames)
    store_bytes = math.inf if grows() else (2 * num_actors + len(machines)) * needs.batch * share
    pool = replace(pool, num_actors=num_actors, store_bytes=store_bytes)
    return replace(embedding, config=replace(embedding.config, streams=streams)), pool
