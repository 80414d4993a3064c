"""A tower's weights as plain arrays, which processes of one machine may map instead of each holding its own.

What is read-only stays so: a frozen tower is never written, and torch warns of nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from dejavu.backbones.load import Backbone
from dejavu.backbones.preprocess import Preprocess
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.tower.without_weights import without_weights

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BackboneOutline:
    """A backbone without its weights and texts: small enough to travel."""

    name: str
    identity: str
    shape: VitShape
    preprocess: Preprocess
    logit_scale: float | None


def outline(backbone: Backbone) -> BackboneOutline:
    """Return what is left of a backbone without weights."""
    return BackboneOutline(
        backbone.name, backbone.identity, backbone.vit.shape, backbone.preprocess, backbone.logit_scale
    )


def to_arrays(vit: Vit) -> dict[str, NDArray[Any]]:
    """Return the weights as the tower holds them, by name; no copy is made of weights on a CPU."""
    return {name: weight.detach().cpu().numpy() for name, weight in vit.state_dict().items()}


def from_arrays(found: BackboneOutline, arrays: Arrays) -> Backbone:
    """Build a backbone whose tower works on these very arrays; it embeds no texts.

    Raises:
        RuntimeError: They are not the weights of this tower.
    """
    with without_weights():  # no memory is taken for weights that are there already
        vit = Vit(found.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    vit.load_state_dict(weights, assign=True)
    return Backbone(found.name, found.identity, vit, found.preprocess, None, found.logit_scale)
