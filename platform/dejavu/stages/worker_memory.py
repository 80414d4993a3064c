"""What a worker's memory comes to by formula, so that it is known before the work begins.

Shapes: L layers, N tokens, D width, M the MLP's width, S streams in lockstep.
"""

from __future__ import annotations

from torch import nn


def tower_bytes(vit: nn.Module) -> int:
    """Return the bytes of a tower's weights."""
    return sum(weight.numel() * weight.element_size() for weight in vit.parameters())
