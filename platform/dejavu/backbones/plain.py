"""Read a vision tower as `save_pretrained` writes it today, without transformers.

To import transformers' models takes seconds of a processor, in every worker that encodes or trains. So what can be read
without is; what is written otherwise, or wrongly, is left to transformers, which knows more and says what is amiss.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dejavu.backbones.locate import BackboneFiles
from reuse_models.tower.hugging_face import CLIP, TOWER, TWO_TOWERS, shape_of, tower_weights
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.tower.without_weights import without_weights

PROJECTION = "visual_projection."
LAYER = re.compile(r"(?:encoder\.|model\.)?layers?\.(\d+)\.")
"""What the name of a layer's weight begins with, in any family."""


def read_tower(files: BackboneFiles) -> Vit | None:
    """Return the tower in float32, or None where it takes transformers to read it or to say why it cannot be read."""
    if [path.name for path in files.weights] != ["model.safetensors"] or "vision_config_dict" in files.config:
        return None
    try:
        shape = _shape(files)
        state = _read(files)
        layers = {int(found[1]) for name in state if (found := LAYER.match(name))}
        if (len(layers), max(layers)) != (shape.num_layers, shape.num_layers - 1):
            return None
        weights = tower_weights(state, shape)
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            return None
        # No memory is taken for weights that the file does not have: sizes may be absurd.
        with without_weights():
            vit = Vit(shape)
        vit.load_state_dict(weights, assign=True)
    except Exception:  # whatever it is, transformers meets it too
        return None
    return vit


def _shape(files: BackboneFiles) -> VitShape:
    config: dict[str, Any] = files.config
    whole = files.model_type in TWO_TOWERS
    tower = SimpleNamespace(**(config["vision_config"] if whole else config))
    if whole and tower.model_type != f"{files.model_type}_vision_model":
        raise ValueError(tower.model_type)
    alone = files.model_type == "clip_vision_model" and "CLIPVisionModel" in (config.get("architectures") or ())
    has_projection = files.model_type in CLIP and not alone
    shape = shape_of(tower, config["projection_dim"] if has_projection else None)
    sizes = shape.image_px, shape.patch_px, shape.width, shape.num_heads, shape.num_layers, shape.mlp_width
    if any(type(size) is not int or size < 1 for size in (*sizes, shape.embed_dim, shape.num_registers + 1)):
        raise ValueError(sizes)
    if not (isinstance(shape.layer_norm_eps, float) and 0 < shape.layer_norm_eps < 1):
        raise ValueError(shape.layer_norm_eps)
    return shape


def _read(files: BackboneFiles) -> dict[str, Tensor]:
    """Return the tower's weights, and its projection's, under their names within the tower."""
    whole = files.model_type in TWO_TOWERS
    with safe_open(files.weights[0], framework="pt") as tensors:
        names = [name for name in tensors.keys() if not whole or name.startswith((TOWER, PROJECTION))]  # noqa: SIM118
        return {name.removeprefix(TOWER): tensors.get_tensor(name).to(torch.float32, copy=True) for name in names}
