"""How much memory a worker takes that trains, by formula: to choose how many clips it runs at once, or to refuse.

`return_large_blocks` holds a process that it is called in to what its tensors take.

    peak = process + tower + add-ons + windows + max(step, warm-up, one clip's calibration, 256 MiB)

    tower        its weights; nothing where workers of a machine share them
    add-ons      each target's weights, gradients, two moments, and the best weights so far: 5 copies
    windows      bytes of frames held for shuffling and validation, one step's as pixels, one visit to a clip
    step         per clip U ((L - 1) (11.4 + (4 R + H) / D) + (L - 1 - recomputed) M / D + 12), times what the
                 allocator loses between tensors; U = 5 N D numbers is one layer's input of the five frames that record
    warm-up      one layer's input of all its clips, and 4 times the sample of pairs of one boundary
    calibration  3 times what ReuseViT remembers of a clip, its frames, and 16 of them as pixels; the tower once more
                 where it embeds in another type than it trains in

Validation and calibration take as many windows and clips at once as fit into the last term, one at least.

Of a boundary are kept: q, k, v (3), both outputs of attention (2), h before and after the MLP (2), reference minus own
(4), and the chosen outputs of two frames in five (0.4); the restoration's 4 R and the decision's H hidden units; and
the MLP's M (3 M where it is gated) where they are not computed again. Rotary positions add q and k as turned (2). 12 U
come and go within a layer. Without CLS, 3 N / d more do, since importance is read from the whole matrix of attention,
and the last layer is kept too (8 + M / D, of six frames).

Shapes: N tokens, D width, L layers, R rank, H hidden units of a decision, M of an MLP, d width of a head, F frames of a
clip, P patches a side.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from reuse_models.reusevit.addon import Addon, AddonShape
from reuse_models.reusevit.anchors import state_bytes_per_stream
from reuse_models.reusevit.codec_net import CODEC_CHANNELS, CODEC_STEPS
from reuse_models.reusevit.engines.masked import RECOMPUTED_SHARE
from reuse_models.reusevit.frame_order import PATTERN_SPAN, PUBLISHED_PATTERN
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.tower.without_weights import without_weights
from reuse_models.training.warm_up import HELD_BYTES, WarmUpConfig

GIB = 2**30
TRAINER_BYTES = int(0.75 * GIB)
"""Python, torch, Ray Train and a decoder, before any weight."""
CUDA_CONTEXT_BYTES = int(0.75 * GIB)
CPU_LOSS, CUDA_LOSS = 1.5, 1.2
"""What the allocator holds over what lives: measured 1.3 to 1.5 with glibc's; torch's on a GPU is an assumption."""
KEPT_INPUTS = 11.4
PASSING_INPUTS = 12
LAST_LAYER_INPUTS = 8
"""Beside the MLP's hidden units."""
HIDDEN_TERM_INPUTS = 8
"""More, where the loss compares hidden states: the teacher's, the student's, and what their cosine takes."""
GATHERED_INPUTS = 24
"""Of one batch of clips in the warm-up, in one layer."""
VALIDATED_INPUTS = 26
"""Of each window that is validated, nothing recorded."""
LEAST_PHASE_BYTES = 2**28
"""Windows are validated at once up to so much, or to what the rest of a fit takes anyway; so are clips calibrated."""
PAIR_COPIES = 4
ADDON_COPIES = 5
STATE_COPIES = 3
"""Of what ReuseViT remembers of a clip: itself, and room to work."""
CALIBRATED_FRAMES = 16
"""Of each clip, given to ReuseViT at once."""
FRAMES = len(PUBLISHED_PATTERN)
RECORDED_FRAMES = FRAMES - 1
MACROBLOCK_PX = 16
VISIT_FRAMES = 2 * 8 * PATTERN_SPAN
"""Decoded at once, and once more where its pieces are joined."""
FAVOURED_STEP_BYTES = 2 * GIB
"""On a CPU, clips run at once up to so much: more of them make a step hardly faster."""
LARGE_BYTES = 2**20
_M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """What a worker's memory follows from."""

    shape: VitShape
    addon: AddonShape
    num_addons: int = 1
    """Fitted side by side on the same clips."""
    clips_per_step: int = 16
    """Of this worker."""
    held_clips: int = 80
    """Windows in memory as bytes: for shuffling, and for validation."""
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)
    hidden_terms: bool = False
    """Whether the loss compares hidden states."""
    calibration_frames: int = 64
    """Of the longest clip that biases are sought on."""
    dtype: torch.dtype = torch.float32
    """Of the tower, and so of what a step keeps."""
    embedding_dtype: torch.dtype | None = None
    """Of the tower that embeds, and so calibrates; the same unless given."""
    on_gpu: bool = False
    """Whether the memory asked for is the GPU's; else it is the process's."""
    shares_tower: bool = False
    """Whether the tower's weights lie in memory that is not this process's own."""

    @property
    def tower_bytes(self) -> int:
        return self._num_weights * self.dtype.itemsize

    @property
    def embedding_tower_bytes(self) -> int:
        """What the tower that embeds takes beside the one that trains: on a CPU as it is read, too, in float32."""
        if self.embedding_dtype in (None, self.dtype):
            return 0
        return self._num_weights * (self.embedding_dtype.itemsize + (0 if self.on_gpu else 4))

    @property
    def _num_weights(self) -> int:
        with without_weights():
            return sum(weight.numel() for weight in Vit(self.shape).parameters())

    @property
    def addons_bytes(self) -> int:
        """All add-ons with what belongs to them, in float32."""
        with without_weights():
            num_weights = sum(weight.numel() for weight in Addon(self.addon).parameters())
        return num_weights * 4 * ADDON_COPIES * self.num_addons

    @property
    def windows_bytes(self) -> int:
        """Frames and codec grids; on a GPU the pixels of one step."""
        shape = self.shape
        codec = FRAMES * CODEC_CHANNELS * CODEC_STEPS * shape.patches_per_side**2 * 4
        pixels = self.clips_per_step * (FRAMES * 3 * shape.image_px**2 * 4 + codec)
        if self.on_gpu:
            return pixels
        frame = 3 * (MACROBLOCK_PX * shape.patches_per_side) ** 2
        return pixels + self.held_clips * (FRAMES * frame + codec) + VISIT_FRAMES * frame

    @property
    def input_bytes(self) -> int:
        """U: one layer's input of the frames of a clip that are recorded."""
        return RECORDED_FRAMES * self.shape.num_tokens * self.shape.width * self.dtype.itemsize

    @property
    def passing_inputs(self) -> float:
        """What comes and goes within a layer, in U: without CLS the whole matrix of attention, and its gradient."""
        return PASSING_INPUTS + (0 if self.shape.has_cls else 3 * self.shape.num_tokens / self.shape.head_dim)

    def step_bytes(self, clips: int) -> int:
        """Forward and backward pass over so many clips."""
        shape, addon = self.shape, self.addon
        boundaries = addon.num_boundaries
        recomputed = min(boundaries, math.ceil(RECOMPUTED_SHARE * shape.num_layers))
        beside = (4 * addon.restoration_rank + addon.decision_hidden) / shape.width
        rotary = 2 if shape.rope_theta is not None else 0  # q and k turned, beside v among those that are not
        mlp = (3 if shape.gated_mlp else 1) * shape.mlp_width / shape.width
        inputs = boundaries * (KEPT_INPUTS + rotary + beside) + (boundaries - recomputed) * mlp
        if not shape.has_cls:  # the last layer and the head work on all tokens of all frames
            inputs += (LAST_LAYER_INPUTS + mlp) * FRAMES / RECORDED_FRAMES
        inputs += self.passing_inputs + HIDDEN_TERM_INPUTS * self.hidden_terms
        return int(clips * inputs * self.input_bytes * self._loss)

    def warm_up_bytes(self, clips: int) -> int:
        """What a warm-up holds that takes so many clips at once; none where it is left out."""
        if not self.warm_up.steps:
            return 0
        layer = self.input_bytes * FRAMES // RECORDED_FRAMES
        held = min(self.warm_up.num_clips * layer, HELD_BYTES + clips * layer)
        pairs = PAIR_COPIES * self.warm_up.num_pairs * (5 * self.shape.width + 2) * 4
        return int(held + pairs + clips * GATHERED_INPUTS * layer)

    @property
    def calibration_bytes(self) -> int:
        """What a validation clip takes while the bias of an add-on is sought: in float32, with room to work."""
        shape = self.shape
        state = state_bytes_per_stream(shape)
        frame = 3 * (MACROBLOCK_PX * shape.patches_per_side) ** 2
        frames = 0 if self.on_gpu else self.calibration_frames * frame
        pixels = 2 * CALIBRATED_FRAMES * 3 * shape.image_px**2 * 4
        return STATE_COPIES * state + frames + pixels

    def peak_bytes(self, clips: int) -> int:
        """Return the most that the worker takes while it runs `clips` at once, 1 or more."""
        process = CUDA_CONTEXT_BYTES if self.on_gpu else TRAINER_BYTES
        tower = 0 if self.shares_tower else self.tower_bytes
        return process + tower + self.addons_bytes + self.windows_bytes + self._widest_phase_bytes(clips)

    def validated_at_once(self, clips: int) -> int:
        """Return how many windows can be validated at once where `clips` are trained on at once, 1 or more."""
        each = VALIDATED_INPUTS * self.input_bytes * self._loss
        return max(1, int(self._widest_phase_bytes(clips) / each))

    def calibrated_at_once(self, clips: int) -> int:
        """Return how many clips biases can be sought on at once where `clips` are trained on at once, 1 or more."""
        return max(1, (self._widest_phase_bytes(clips) - self.embedding_tower_bytes) // self.calibration_bytes)

    def _widest_phase_bytes(self, clips: int) -> int:
        calibration = self.embedding_tower_bytes + self.calibration_bytes
        return max(self.step_bytes(clips), self.warm_up_bytes(clips), calibration, LEAST_PHASE_BYTES)

    def clips_at_once(self, limit_bytes: int) -> int:
        """Return how many clips of a step to run at once within a limit; 0 where not even one fits."""
        fitting = 0
        for clips in range(1, self.clips_per_step + 1):
            favoured = self.on_gpu or clips == 1 or self.step_bytes(clips) <= FAVOURED_STEP_BYTES
            if not favoured or self.peak_bytes(clips) > limit_bytes:
                break
            fitting = clips
        return fitting

    @property
    def _loss(self) -> float:
        return CUDA_LOSS if self.on_gpu else CPU_LOSS


def return_large_blocks() -> None:
    """Let freed tensors go back to the system: blocks of LARGE_BYTES are mapped one by one from here on.

    glibc does so at first, but with each block that is freed it raises the size from which it does, up to 32 MiB.
    Tensors below lie in one heap then, and the gap that a freed one leaves between two kept ones may be too short for
    the next of the same size, since torch asks for aligned blocks: a backward pass was seen to take twice what it
    keeps, and more or less of that from one processor and run to the next. Time was the same within a tenth.

    Other C libraries have no such setting, and need none.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
