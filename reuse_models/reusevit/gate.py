"""Who is reused: six numbers per patch, a small MLP on them, and the gate that turns its answer into reuse.

Shapes: X stands for leading dimensions (clips or frames), A patches (all tokens but the prefix), H hidden units.
A gate returns g_XA in 0..1, 1 for reuse; the hard ones only 0 and 1.
Source: paper, section on the decision layer; docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reuse_models.reusevit.engines.token_memory import cosine_dtype
from reuse_models.reusevit.frame_order import NUM_KINDS
from reuse_models.tower.shape import VitShape

NUM_FEATURES = 3 + NUM_KINDS
TEMPERATURE = 0.025
DROPOUT = 0.25
INITIAL_STD = 0.001

Numbers = Literal["plain", "log"]
"""How importance and similarity enter a decision: as they are (published), or as logarithms, centred and scaled (ours).

Most similarities lie within 0.03 of 1, and what matters there is their ratio: plain, they cannot be told apart before
thousands of steps.
"""
LEAST_CHANGE = 1e-4
"""Added to 1 - similarity, and to importance, before the logarithm: far above rounding, below what matters."""

FrameId = tuple[int, int]
"""(stream, number of the frame in the stream): what a forced gate draws by, so that batching changes nothing."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a decision is made from, for frames of one kind at one boundary."""

    importance_XA: Tensor
    """Attention that CLS pays to the patch in the layer before, summed over heads; without CLS the mean over tokens."""
    similarity_XA: Tensor
    """Cosine of pre_proj with the most similar reference's."""
    codec_XA: Tensor
    """Score of the codec net."""
    kind: int
    """0..2, see frame_order."""
    frames: Sequence[FrameId] = ()
    """Which frames the leading dimension holds; a forced gate needs it, a trained one does not."""


class Gate(Protocol):
    """Decides at one boundary."""

    def __call__(self, boundary: int, features: Features) -> Tensor:
        """Return g_XA for boundary `boundary` -> `boundary` + 1 of the tower's layers, counted from 0."""
        ...


class Decision(nn.Module):
    """One boundary's MLP: Linear, dropout, ReLU, Linear to (reuse, compute)."""

    shift_3: Tensor
    scale_3: Tensor

    def __init__(self, hidden: int, numbers: Numbers = "plain") -> None:
        super().__init__()
        self.numbers = numbers
        if numbers == "log":
            # Mean and deviation of the three numbers, set by `training.warm_up` before training.
            self.register_buffer("shift_3", torch.zeros(3))
            self.register_buffer("scale_3", torch.ones(3))
        self.enter = nn.Linear(NUM_FEATURES, hidden)
        self.leave = nn.Linear(hidden, 2)
        self.dropout = nn.Dropout(DROPOUT)
        for linear in (self.enter, self.leave):
            nn.init.normal_(linear.weight, 0.0, INITIAL_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return logits_XA2."""
        numbers_XA3 = self.enter_numbers(features)
        # The kind is one for all rows: its column is a bias.
        bias_H = self.enter.bias + self.enter.weight[:, 3 + features.kind]
        hidden_XAH = F.linear(numbers_XA3, self.enter.weight[:, :3], bias_H)
        logits_XA2: Tensor = self.leave(F.relu(self.dropout(hidden_XAH)))
        return logits_XA2

    def enter_numbers(self, features: Features) -> Tensor:
        """Return [X, A, 3]: importance, similarity and codec score as the MLP takes them."""
        # In 16 bits most similarities would be 1, and so the logarithms of what they lack.
        dtype = cosine_dtype(self.enter.weight)
        importance_XA, similarity_XA = features.importance_XA.to(dtype), features.similarity_XA.to(dtype)
        if self.numbers == "log":
            importance_XA = torch.log(importance_XA + LEAST_CHANGE)
            similarity_XA = -torch.log((1 - similarity_XA).clamp_min(0) + LEAST_CHANGE)
        numbers = (importance_XA, similarity_XA, features.codec_XA)
        numbers_XA3 = torch.stack([one.to(self.enter.weight.dtype) for one in numbers], dim=-1)
        return (numbers_XA3 - self.shift_3) / self.scale_3 if self.numbers == "log" else numbers_XA3


class SoftGate:
    """The training gate: the reuse entry of a Gumbel-softmax over the log-probabilities."""

    def __init__(self, decisions: nn.ModuleList, generator: torch.Generator | None = None) -> None:
        self.decisions = decisions
        self.generator = generator

    def __call__(self, boundary: int, features: Features) -> Tensor:
        logits_XA2: Tensor = self.decisions[boundary](features)
        log_XA2 = F.log_softmax(logits_XA2.float(), dim=-1)
        uniform_XA2 = torch.rand(log_XA2.shape, generator=self.generator, device=log_XA2.device)
        noise_XA2 = -torch.log(-torch.log(uniform_XA2.clamp(1e-20, 1 - 1e-7)))
        return torch.softmax((log_XA2 + noise_XA2) / TEMPERATURE, dim=-1)[..., 0]


class StraightGate:
    """A training gate without noise (ours): hard forward, as inference is, with the gradient of a sigmoid.

    A Gumbel-softmax this cold has a gradient at near ties alone, and its noise reuses patches that must not be reused;
    here every patch says whether it had better been computed.
    """

    def __init__(self, decisions: nn.ModuleList) -> None:
        self.decisions = decisions

    def __call__(self, boundary: int, features: Features) -> Tensor:
        logits_XA2: Tensor = self.decisions[boundary](features).float()
        difference_XA = logits_XA2[..., 0] - logits_XA2[..., 1]
        soft_XA = torch.sigmoid(difference_XA)
        # In this order the sum is exactly 0 or 1.
        return (difference_XA > 0).to(soft_XA.dtype) + (soft_XA - soft_XA.detach())


class HardGate:
    """The inference gate: reuse where its logit, plus a bias that is the runtime knob, is the larger one.

    For GPUs `engines/fused_kernels.py` repeats it and `Decision`; `test_fused_capacity.py` holds them equal.
    """

    def __init__(self, decisions: nn.ModuleList, bias: float = 0.0) -> None:
        self.decisions = decisions
        self.bias = bias

    def __call__(self, boundary: int, features: Features) -> Tensor:
        logits_XA2: Tensor = self.decisions[boundary](features)
        return (logits_XA2[..., 0] + self.bias > logits_XA2[..., 1]).to(features.similarity_XA.dtype)


def bias_for(rate: float, biases: Sequence[float], rates: Sequence[float]) -> float:
    """Interpolate the bias that gives a rate, 0..1; the nearest end where the rate is out of reach.

    Biases ascend; small dips in the rates that they reach are smoothed over.
    """
    rising = np.maximum.accumulate(np.asarray(rates))
    return round(float(np.interp(rate, rising, np.asarray(biases))), 3)


ForcedChoice = Literal["random", "similar"]
FORCED_CHOICES: tuple[ForcedChoice, ...] = ("random", "similar")


class ForcedGate:
    """Reuses a given share of all tokens at every boundary: speed can be measured, and the engine tested, untrained.

    `random` draws the patches by frame and boundary from a fixed seed; `similar` takes those that changed least.
    """

    NUM_DRAWS = 31

    def __init__(self, rate: float, choice: ForcedChoice, shape: VitShape) -> None:
        num_patches, num_boundaries = shape.num_patches, shape.num_layers - 1
        # The prefix is never reused, so that a rate of 1 means all patches.
        self.num_reused = min(round(rate * shape.num_tokens), num_patches)
        self.choice = choice
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(self.NUM_DRAWS, num_boundaries, num_patches, generator=generator).argsort(dim=-1)
        self.masks_RbA = (order < self.num_reused).float()

    def __call__(self, boundary: int, features: Features) -> Tensor:
        similarity_XA = features.similarity_XA
        if self.choice == "similar":
            reused = similarity_XA.topk(self.num_reused, dim=-1).indices
            return torch.zeros_like(similarity_XA).scatter_(-1, reused, 1.0)
        if len(features.frames) != len(similarity_XA):
            raise ValueError(
                f"forced gate: got {len(features.frames)} frame ids for {len(similarity_XA)} frames, expected one "
                "each; name the frames"
            )
        return self.masks_RbA[self.draws(features.frames), boundary].to(similarity_XA)

    def draws(self, frames: Sequence[FrameId]) -> list[int]:
        """Return which of the masks each frame gets, where they are random."""
        # Prime to the draws, so that neighbours in time and beside each other differ.
        return [(17 * stream + 5 * frame) % self.NUM_DRAWS for stream, frame in frames]


def check_rate(rate: float) -> None:
    """Refuse, by a ValueError, a reuse rate outside 0..1."""
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"reuse rate: got {rate}, expected 0..1; give the share of tokens to reuse")
