"""A tower on arrays that are not its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dejavu.backbones.load import load_backbone
from dejavu.backbones.shared import from_arrays, outline, to_arrays


def test_a_tower_works_on_read_only_arrays_without_copying_them() -> None:
    backbone = load_backbone()
    arrays = {name: array.copy() for name, array in to_arrays(backbone.vit).items()}
    for array in arrays.values():
        array.flags.writeable = False  # as the object store gives them
    shared = from_arrays(outline(backbone), arrays)
    pixels = backbone.preprocess(np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=np.uint8))
    with torch.no_grad():
        assert torch.equal(shared.vit(pixels), backbone.vit(pixels))
    for name, weight in shared.vit.state_dict().items():
        assert weight.data_ptr() == arrays[name].ctypes.data, name
    assert not any(weight.requires_grad for weight in shared.vit.parameters())
    assert (shared.identity, shared.frame_px) == (backbone.identity, backbone.frame_px)


def test_weights_of_another_tower_are_refused() -> None:
    backbone = load_backbone()
    arrays = to_arrays(backbone.vit)
    arrays.pop("position")
    with pytest.raises(RuntimeError, match="position"):
        from_arrays(outline(backbone), arrays)
