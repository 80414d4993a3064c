"""How reuse goes: decided by what, restored by what, remembered as what. One value for training and inference."""

from __future__ import annotations

from dataclasses import dataclass

from reuse_models.reusevit.addon import Addon
from reuse_models.reusevit.engines.token_memory import ReferenceState
from reuse_models.reusevit.gate import Gate


@dataclass(frozen=True, slots=True)
class ReusePolicy:
    """What a layer step needs beside the tower."""

    addon: Addon
    """Its restorations; its decisions act through the gate."""
    gate: Gate
    """Soft for training; hard or forced otherwise."""
    reference_state: ReferenceState = "anchor"
    """What a frame finds at a reference that reused the patch itself."""
