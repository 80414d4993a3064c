"""Load a backbone: the embedded one, a local directory or the hub, all the same way.

Shapes: F frames, T phrases, E embedding width, P patches a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dejavu.backbones.image_processor import default_image_px, read_image_processor
from dejavu.backbones.locate import EMBEDDED, BackboneError, BackboneFiles, locate
from dejavu.backbones.plain import read_tower
from dejavu.backbones.preprocess import Preprocess
from dejavu.backbones.text import TextTower, find_text, part_config, quiet
from reuse_models.tower.hugging_face import check_family, from_hf
from reuse_models.tower.vit import Vit

__all__ = ["EMBEDDED", "Backbone", "BackboneError", "load_backbone"]

MACROBLOCK_PX = 16


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen vision tower with what belongs to it. Build it with `load_backbone`."""

    name: str
    identity: str
    """SHA-256 of config, preprocessor and weights."""
    vit: Vit
    preprocess: Preprocess
    """Call it on decoded frames."""
    text: TextTower | None
    """None where the directory holds a vision tower alone, or no tokenizer."""
    logit_scale: float | None
    """What the model multiplies cosines by; None where it is not stored."""

    @property
    def frame_px(self) -> int:
        """Side of a transcoded frame: one H.264 macroblock covers one patch."""
        return MACROBLOCK_PX * self.vit.shape.patches_per_side

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return [T, E] float32, each of length 1, on the CPU.

        Raises:
            BackboneError: There is no text tower, or it does not load.
        """
        if self.text is None:
            raise BackboneError(
                f"backbone {self.name}: got a vision tower without text tower or tokenizer, expected both for "
                "questions in words; save the whole CLIPModel or SiglipModel and its tokenizer in one directory"
            )
        return self.text.embed(texts)


def load_backbone(
    name: str = EMBEDDED,
    image_px: int | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """Load a backbone.

    Args:
        name: `embedded`, a local directory written by save_pretrained (CLIPModel, CLIPVisionModelWithProjection,
            CLIPVisionModel, SiglipModel, SiglipVisionModel, Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel), or
            a name on the hub.
        image_px: Side of the frames that the tower sees, a multiple of its patches; that of its image processor unless
            given. Positions are interpolated.
        device: Where the tower goes; `auto` is a GPU where there is one, else the CPU.
        dtype: Of the tower's weights.

    Raises:
        BackboneError: It is not to be found, has no safetensors weights, is another kind of model, does not load, or
            does not run at this size.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    files = locate(name)
    try:
        check_family(files.model_type)
    except ValueError as error:
        raise BackboneError(f"{error}".replace("backbone:", f"backbone {name}:", 1)) from error
    vit = read_tower(files)
    if vit is None:
        vit = _vision_tower(name, files)
    try:
        processor = read_image_processor(files.preprocessor(), files.model_type)
        default_px = default_image_px(processor, files.model_type, vit.shape.image_px)
        vit = vit.at_size(image_px or default_px)
    except ValueError as error:
        raise BackboneError(f"backbone {name}: {error}") from error
    return Backbone(
        name=name,
        identity=files.identity(None if image_px == default_px else image_px),
        vit=vit.to(device=device, dtype=dtype),
        preprocess=Preprocess(vit.shape.image_px, processor, device),
        text=find_text(files.directory, files.model_type),
        logit_scale=_logit_scale(files),
    )


def _vision_tower(name: str, files: BackboneFiles) -> Vit:
    from transformers import (  # noqa: PLC0415  slow to import
        AutoConfig,
        CLIPVisionModel,
        CLIPVisionModelWithProjection,
        Dinov2Model,
        Dinov2WithRegistersModel,
        DINOv3ViTModel,
        SiglipVisionModel,
    )

    architectures = files.config.get("architectures") or []
    kinds: dict[str, Any] = {
        "clip": CLIPVisionModelWithProjection,
        "clip_vision_model": CLIPVisionModel if "CLIPVisionModel" in architectures else CLIPVisionModelWithProjection,
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "dinov2": Dinov2Model,
        "dinov2_with_registers": Dinov2WithRegistersModel,
        "dinov3_vit": DINOv3ViTModel,
    }
    try:
        with quiet():
            config = AutoConfig.from_pretrained(files.directory, local_files_only=True, trust_remote_code=False)
            model, info = kinds[files.model_type].from_pretrained(
                files.directory,
                config=part_config(config, "vision_config"),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told of below, by name
            )
        if info["mismatched_keys"]:
            weight, there, wanted = sorted(info["mismatched_keys"])[0]
            raise ValueError(f"{weight} of {list(there)}, where the config says {list(wanted)}")
        if info["missing_keys"]:
            raise ValueError(f"no weights for {sorted(info['missing_keys'])[0]}")
        if broken := [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]:
            raise ValueError(f"values that are no numbers in {broken[0]}")
        return from_hf(model)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"backbone {name}: got {reason}, expected the config and weights of one {files.model_type}; "
            "save or download it again"
        ) from error


def _logit_scale(files: BackboneFiles) -> float | None:
    for path in files.weights:
        with safe_open(path, framework="pt") as tensors:
            if "logit_scale" in tensors.keys():  # noqa: SIM118  not a mapping
                return math.exp(float(tensors.get_tensor("logit_scale")))
    return None
