"""Modules of shapes alone: no memory, no values, and no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from reuse_models.reusevit.addon import Addon, addon_shape
from reuse_models.tower.vit import Vit
from reuse_models.tower.without_weights import without_weights

ROOT = Path(__file__).resolve().parents[3]
LOADS = """
import sys
from dataclasses import replace
import torch
from reuse_models.reusevit.addon import Addon, addon_shape, load_addon, save_addon
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit
from reuse_models.tower.without_weights import without_weights
from pathlib import Path
shape = replace(KNOWN_SHAPES["openai/clip-vit-base-patch16"], num_layers=2)
save_addon(Addon(addon_shape(shape)), Path(sys.argv[1]))
load_addon(Path(sys.argv[1]))
with without_weights():
    tower = Vit(shape)
assert tower.at_size(112).position.shape == (1 + 7**2, shape.width)
print("torch._dynamo" in sys.modules)
"""


def test_what_is_built_has_its_shapes_alone(clip_vit: Vit) -> None:
    with without_weights():
        vit, addon = Vit(clip_vit.shape), Addon(addon_shape(clip_vit.shape))
    for built, real in ((vit, clip_vit), (addon, Addon(addon_shape(clip_vit.shape)))):
        assert {name: x.shape for name, x in built.state_dict().items()} == {
            name: x.shape for name, x in real.state_dict().items()
        }
        assert all(x.is_meta for x in built.state_dict().values())
    # What is built afterwards is as ever.
    assert torch.nn.Linear(2, 2).weight.isfinite().all()


def test_an_addon_is_loaded_and_a_tower_resized_without_pytorchs_compiler(tmp_path: Path) -> None:
    """It takes seconds to import, in every process that encodes."""
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path / "addon.safetensors")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
