"""The memory of a schedule search, from shapes alone: how many frames go through at once, and what that comes to.

Checked against what autograd keeps and against the growth of a process
(`tests/reuse_models/baselines/diffrate/test_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from reuse_models.baselines.diffrate.relaxed import kept_values
from reuse_models.tower.shape import VitShape

DENSE_BATCH = 32
"""Frames that are judged at once, without gradients."""
LAYERS_IN_WORK = 2
"""Beside what is kept, a backward pass holds gradients of the layer that it is in: less than that layer keeps, twice
over for the margin."""
SETUP_BYTES = 192 * 2**20
"""Code and buffers of the first products, 30 MiB, and of `torch.utils.checkpoint`, another 110 where layers are
computed twice; the rest is margin."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How a step's frames go through the relaxed tower."""

    num_frames: int
    """At once."""
    recompute: bool
    """Whether a frame's layers are computed twice rather than kept."""
    kept_bytes: int
    """For the backward pass of one turn; no more than allowed, unless one frame takes more."""


def plan_turns(shape: VitShape, frames_per_step: int, kept_mib: int) -> Turns:
    """Let as many frames go through at once as `kept_mib` takes, one at least."""
    layers, allowed = shape.num_layers - 1, kept_mib * 2**20
    layer_bytes = 4 * kept_values(shape)
    if at_once := min(frames_per_step, allowed // max(1, layers * layer_bytes)):
        return Turns(at_once, False, at_once * layers * layer_bytes)
    inputs_bytes = 4 * layers * shape.num_tokens * (shape.width + 8)
    at_once = max(1, min(frames_per_step, allowed // (inputs_bytes + layer_bytes)))
    return Turns(at_once, True, at_once * (inputs_bytes + layer_bytes))


def search_bytes(shape: VitShape, turns: Turns, num_frames: int, bytes_per_frame: int) -> int:
    """Bound a search's memory beside the tower: frames, their embeddings, and one turn or one judged batch.

    It holds where freed tensors go back to the system (`training/large_blocks.py`). Of it, 46 to 83 % were measured.
    Frames count as they are given, before they are prepared.
    """
    pixels_bytes = 2 * 4 * 3 * shape.image_px**2  # beside the frames as rows of patches
    turn = turns.kept_bytes + turns.num_frames * (LAYERS_IN_WORK * 4 * kept_values(shape) + pixels_bytes)
    tokens = shape.num_tokens
    judged = 4 * tokens * (9 * shape.width + shape.mlp_width + 3 * tokens) + pixels_bytes
    frames = num_frames * (bytes_per_frame + 4 * shape.embed_dim)
    return SETUP_BYTES + frames + max(turn, min(DENSE_BATCH, num_frames) * judged)
