"""What a backbone's image processor does to a square picture: its config read whole, or refused in one line.

The steps are those of transformers' CLIP, SigLIP, BiT, ViT and DINOv3 processors: scale, take the centre, multiply by
rescale_factor, subtract the mean, divide by the std. A key that a config leaves out or sets to null has the value that
the processor's class in transformers gives it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Rgb = tuple[float, float, float]
Resample = Literal["nearest", "bilinear", "bicubic"]

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
HALF: Rgb = (0.5, 0.5, 0.5)
BYTE = 1 / 255

_log = logging.getLogger(__name__)
FIXED_SIZE = frozenset({"clip", "clip_vision_model", "siglip", "siglip_vision_model"})
"""Model types that take pictures of one size alone."""

_RESAMPLING: dict[int, Resample] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_USUAL_PX = 224
_LARGEST_PX = 4096
_LARGEST_VALUE = 1e6
"""Of a pixel that the tower sees: beyond it a mean, std or factor is taken for damage."""

_WITHOUT_EFFECT = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "do_convert_rgb",
        "data_format",
        "input_data_format",
        "default_to_square",
        "return_tensors",
        "device",
        "disable_grouping",
        "_valid_processor_keys",
        "_valid_kwargs_names",
    }
)
"""Names, layouts and conversions that change no square RGB picture."""

_EVERYWHERE: dict[str, Any] = {
    "do_resize": True,
    "size": _USUAL_PX,
    "do_center_crop": False,
    "crop_size": _USUAL_PX,
    "do_rescale": True,
    "rescale_factor": BYTE,
    "do_normalize": True,
}
_CLIPS = {**_EVERYWHERE, "do_center_crop": True, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
_HONOURED = frozenset(_CLIPS)
_CLASSES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIPS,
    "BitImageProcessor": _CLIPS,
    "SiglipImageProcessor": {**_EVERYWHERE, "resample": 3, "image_mean": HALF, "image_std": HALF},
    "ViTImageProcessor": {**_EVERYWHERE, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "DINOv3ViTImageProcessor": {
        **_EVERYWHERE,
        "resample": 2,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
}
"""What transformers' classes do where a config does not say."""

_CLIP: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor"}
_SIGLIP: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor"}
_DINOV2: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "size": 256,
    "crop_size": 224,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": {"image_processor_type": "DINOv3ViTImageProcessor"},
}
"""The processor published with each model type, for a directory that has none."""


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """What becomes of a square picture of RGB bytes."""

    mean: Rgb = CLIP_MEAN
    std: Rgb = CLIP_STD
    factor: float = BYTE
    """What bytes are multiplied by before mean and std apply."""
    resample: Resample = "bicubic"
    """Antialiased, but for nearest."""
    whole_levels: bool = True
    """Whether scaled pixels are rounded to bytes, as Pillow does; DINOv3's are scaled as real numbers."""
    side_px: int | None = None
    """Of the picture that comes out; None where the config says nothing and the tower decides."""
    view: float = 1.0
    """Side of the centre square that is seen, as a share of the picture's side, 0..1."""


def read_image_processor(config: Mapping[str, Any] | None, model_type: str) -> ImageProcessor:
    """Read a processor's config.

    Args:
        config: As in preprocessor_config.json; None for the family's own, of which the log then tells.
        model_type: The tower's, as its config.json names it.

    Raises:
        ValueError: A key or value is unknown or senseless, or makes pictures that the platform cannot make. One line.
    """
    if model_type not in _FAMILIES:
        raise _refusal("model_type", model_type, f"one of {', '.join(_FAMILIES)}", "choose such a backbone")
    if config is None:
        _log.warning("image processor: none beside a %s; its family's own is taken", model_type)
        config = _FAMILIES[model_type]
    said = {key: value for key, value in config.items() if value is not None}
    name = _class_name(said, model_type)
    for key, value in said.items():
        if key not in _HONOURED | _WITHOUT_EFFECT and value:
            raise _refusal(key, value, "nothing that the platform does not know", "choose another backbone")
    steps = {**_CLASSES[name], **{key: value for key, value in said.items() if key in _HONOURED}}
    if not _flag(steps, "do_resize"):
        raise _refusal("do_resize", False, "true, since every frame is scaled to the tower", "set it to true")
    if isinstance(steps["resample"], bool) or steps["resample"] not in (*_RESAMPLING,):
        expected = "0 (nearest), 2 (bilinear) or 3 (bicubic)"
        raise _refusal("resample", steps["resample"], expected, "choose another backbone")
    scaled_px = side_px = _side("size", steps["size"], ({"shortest_edge"}, {"height", "width"}))
    if _flag(steps, "do_center_crop"):
        side_px = _side("crop_size", steps["crop_size"], ({"height", "width"},))
        if side_px > scaled_px:
            expected = f"at most size, {scaled_px}: a larger one would add a black border"
            raise _refusal("crop_size", steps["crop_size"], expected, "correct the file")
    is_said = "size" in said or "crop_size" in said or model_type not in FIXED_SIZE
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if _flag(steps, "do_normalize"):
        mean, std = _rgb("image_mean", steps["image_mean"]), _rgb("image_std", steps["image_std"])
    factor = _number("rescale_factor", steps["rescale_factor"]) if _flag(steps, "do_rescale") else 1.0
    _check_values(mean, std, factor)
    return ImageProcessor(
        mean=mean,
        std=std,
        factor=factor,
        resample=_RESAMPLING[steps["resample"]],
        whole_levels=name != "DINOv3ViTImageProcessor",
        side_px=side_px if is_said else None,
        view=side_px / scaled_px,
    )


def default_image_px(processor: ImageProcessor, model_type: str, tower_image_px: int) -> int:
    """Return the side in pixels at which a tower runs unless told otherwise: that of its processor's pictures.

    `tower_image_px` is what the tower's own config says: DINOv2's says 518, and its processor makes 224.

    Raises:
        ValueError: The processor makes pictures that a tower of one size does not take. One line.
    """
    side_px = processor.side_px
    if model_type in FIXED_SIZE and side_px not in (None, tower_image_px):
        expected = f"the tower's {tower_image_px}"
        raise _refusal("pictures of", f"{side_px} px", expected, "save the processor that belongs to the tower")
    return side_px or tower_image_px


def _refusal(key: str, value: object, expected: str, step: str) -> ValueError:
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    key, shown = (" ".join(text.split())[:60] for text in (key, shown))
    return ValueError(f"image processor: got {key} {shown or '(empty)'}, expected {expected}; {step}")


def _class_name(said: Mapping[str, Any], model_type: str) -> str:
    """Return the class of the processor; `Fast`, `Pil` and old feature extractors are the same but for speed."""
    name = said.get("image_processor_type")
    if name is None:
        name = said.get("feature_extractor_type")
        name = name.replace("FeatureExtractor", "ImageProcessor") if isinstance(name, str) else name
    if name is None:
        return str(_FAMILIES[model_type]["image_processor_type"])
    plain = name.removesuffix("Fast").removesuffix("Pil") if isinstance(name, str) else name
    if not isinstance(plain, str) or plain not in _CLASSES:
        raise _refusal("image_processor_type", name, f"one of {', '.join(_CLASSES)}", "choose another backbone")
    return plain


def _flag(steps: Mapping[str, Any], key: str) -> bool:
    if not isinstance(steps[key], bool):
        raise _refusal(key, steps[key], "true or false", "correct the file")
    return bool(steps[key])


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refusal(key, value, "a number", "correct the file")
    return float(value)


def _rgb(key: str, value: object) -> Rgb:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise _refusal(key, value, "three numbers", "correct the file")
    red, green, blue = (_number(key, part) for part in value)
    return red, green, blue


def _side(key: str, value: object, kinds: tuple[set[str], ...]) -> int:
    """Return the one side of a square, in any of the ways that a config may name it."""
    sides: list[object] = [value]
    if isinstance(value, Mapping):
        named = {name: side for name, side in value.items() if side is not None}
        sides = list(named.values()) if set(named) in kinds else []
    elif isinstance(value, list | tuple):
        sides = list(value) if len(value) == 2 else []
    if not sides or any(side != sides[0] for side in sides):
        expected = f"a square: one number, or {' or '.join(' and '.join(sorted(kind)) for kind in kinds)}"
        raise _refusal(key, value, expected, "choose another backbone")
    side = sides[0]
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= _LARGEST_PX:
        raise _refusal(key, value, f"pixels in 1..{_LARGEST_PX}", "correct the file")
    return side


def _check_values(mean: Rgb, std: Rgb, factor: float) -> None:
    if min(std) <= 0:
        raise _refusal("image_std", std, "positive numbers", "correct the file")
    if factor <= 0:
        raise _refusal("rescale_factor", factor, "a number above 0", "correct the file")
    farthest = max(max(abs(m), abs(255 * factor - m)) / s for m, s in zip(mean, std, strict=True))
    if not farthest <= _LARGEST_VALUE:
        expected = f"{_LARGEST_VALUE:g} at most"
        raise _refusal("pixel values up to", f"{farthest:g}", expected, "correct mean, std or rescale_factor")
