"""What a frame leaves behind for later frames, and under which of three answers (docs/methods.md).

Shapes: C clips, A patches, D width. Everything is of one boundary and of patches alone: CLS is never reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reuse_models.reusevit.engines.similarity import cosine_dtype, similarity

ReferenceState = Literal["anchor", "chained", "grouped"]
"""All that `masked` computes: `chained` is what the published training does, `grouped` its evaluation."""
EngineState = Literal["anchor", "grouped"]
ENGINE_STATES: tuple[EngineState, ...] = ("anchor", "grouped")
"""Those that inference computes: ours, and what published checkpoints are evaluated with."""


@dataclass(frozen=True, slots=True)
class State:
    """h, and q, k, v side by side, of the same patches: the input of a layer."""

    h_CAD: Tensor
    qkv_CAC: Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """What one frame leaves at one boundary."""

    pre_proj_CAD: Tensor
    """Of the frame in which the patch was last computed, whatever the reference state."""
    used: State
    """What the frame's own next layer works with."""
    remembered: State
    """What later frames refer to, by the reference state; `grouped` tells group mates this and later groups `used`."""
    group: int

    def referred(self, reference_state: ReferenceState, group: int) -> State:
        """Return the state that a frame of `group` finds here."""
        if reference_state == "chained" or (reference_state == "grouped" and group != self.group):
            return self.used
        return self.remembered


@dataclass(frozen=True, slots=True)
class Reference:
    """The chosen reference of every patch."""

    similarity_CA: Tensor
    pre_proj_CAD: Tensor
    state: State


def choose_reference(
    pre_proj_CAD: Tensor, candidates: tuple[Trace, ...], reference_state: ReferenceState, group: int
) -> Reference:
    """Pick the candidate whose pre_proj is most similar; the first in computing order where they are equal.

    The choice carries no gradient, the similarity does.
    """
    best = candidates[0]
    with torch.no_grad():
        cosine_CA = _cosine(pre_proj_CAD, best.pre_proj_CAD)
    chosen = best.pre_proj_CAD
    state = best.referred(reference_state, group)
    for other in candidates[1:]:
        with torch.no_grad():
            other_CA = _cosine(pre_proj_CAD, other.pre_proj_CAD)
        nearer_CA = other_CA > cosine_CA
        nearer_CA1 = nearer_CA[..., None]
        found = other.referred(reference_state, group)
        cosine_CA = torch.where(nearer_CA, other_CA, cosine_CA)
        chosen = torch.where(nearer_CA1, other.pre_proj_CAD, chosen)
        state = State(
            torch.where(nearer_CA1, found.h_CAD, state.h_CAD), torch.where(nearer_CA1, found.qkv_CAC, state.qkv_CAC)
        )
    return Reference(similarity(pre_proj_CAD, chosen, cosine_CA), chosen, state)


def _cosine(a_CAD: Tensor, b_CAD: Tensor) -> Tensor:
    dtype = cosine_dtype(a_CAD)
    return torch.cosine_similarity(a_CAD.to(dtype), b_CAD.to(dtype), dim=-1)
