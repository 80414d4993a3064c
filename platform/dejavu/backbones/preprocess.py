"""From decoded frames to a tower's input, as the backbone's own image processor does it, but fast.

Shapes: F frames, H, W their sides (equal), S the tower's side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Rgb = tuple[float, float, float]

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Scale to the tower's size and normalise."""

    image_px: int
    mean: Rgb = CLIP_MEAN
    std: Rgb = CLIP_STD
    device: str = "cpu"
    """Where the tower is, and the arithmetic happens."""

    @staticmethod
    def from_config(image_px: int, config: Mapping[str, Any] | None, device: str = "cpu") -> Preprocess:
        """Take mean and std of a preprocessor_config.json, CLIP's where there is none.

        Raises:
            ValueError: They are not three numbers each, or a std is not positive.
        """
        config = config or {}
        if config.get("do_normalize") is False:
            return Preprocess(image_px, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), device)
        mean, std = config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
        try:
            (red, green, blue), (red_std, green_std, blue_std) = map(float, mean), map(float, std)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"preprocessor config: got mean {mean} and std {std}, expected three numbers each; "
                "check preprocessor_config.json"
            ) from error
        if min(red_std, green_std, blue_std) <= 0:
            raise ValueError(f"preprocessor config: got std {std}, expected positive numbers; check the file")
        return Preprocess(image_px, (red, green, blue), (red_std, green_std, blue_std), device)

    def __call__(self, rgb_FHW3: Tensor | NDArray[np.uint8]) -> Tensor:
        """Return pixels [F, 3, S, S], float32, on the device of the tower.

        Scaling is bicubic with antialiasing and rounds to whole grey levels, as Pillow's does; frames of the right
        size are not touched.

        Raises:
            ValueError: The frames are not square RGB bytes.
        """
        frames_FHW3 = torch.from_numpy(rgb_FHW3) if isinstance(rgb_FHW3, np.ndarray) else rgb_FHW3
        _, height, width, channels = frames_FHW3.shape if frames_FHW3.ndim == 4 else (0, 0, 0, 0)
        if height != width or channels != 3 or frames_FHW3.dtype != torch.uint8:
            raise ValueError(
                f"frames: got {list(frames_FHW3.shape)} of {frames_FHW3.dtype}, expected square uint8 [F, H, H, 3]; "
                "transcode the video first"
            )
        frames_F3HW = frames_FHW3.to(self.device).permute(0, 3, 1, 2)
        if height != self.image_px:
            frames_F3HW = self._scale(frames_F3HW)
        pixels_F3SS = frames_F3HW.to(torch.float32, memory_format=torch.contiguous_format)
        mean_311, std_311 = (
            torch.tensor(values, device=pixels_F3SS.device).view(3, 1, 1) for values in (self.mean, self.std)
        )
        return pixels_F3SS.mul_(1 / (255 * std_311)).sub_(mean_311 / std_311)

    def _scale(self, frames_F3HW: Tensor) -> Tensor:
        size = (self.image_px, self.image_px)
        if not len(frames_F3HW):  # a clip that ended before its neighbours in a batch; interpolate takes no empty ones
            return frames_F3HW.new_zeros(0, 3, *size)
        if frames_F3HW.device.type == "cpu":
            return F.interpolate(frames_F3HW, size, mode="bicubic", antialias=True)
        # Other devices have no product on bytes: round as it does.
        scaled_F3SS = F.interpolate(frames_F3HW.float(), size, mode="bicubic", antialias=True)
        return scaled_F3SS.round_().clamp_(0, 255)
