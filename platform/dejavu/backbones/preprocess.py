"""From decoded frames to a tower's input, as the backbone's own image processor does it, but fast.

Shapes: F frames, H, W their sides (equal), S the tower's side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dejavu.backbones.image_processor import ImageProcessor

_CLIP = ImageProcessor()


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Scale to the tower's size and normalise."""

    image_px: int
    processor: ImageProcessor = _CLIP
    device: str = "cpu"
    """Where the tower is, and the arithmetic happens."""

    @property
    def view(self) -> float:
        """Share of the centre square's side that the tower sees, 0..1: what transcoding crops to."""
        return self.processor.view

    def __call__(self, rgb_FHW3: Tensor | NDArray[np.uint8]) -> Tensor:
        """Return pixels [F, 3, S, S], float32, on the device of the tower.

        Scaling is the processor's, antialiased and rounded to whole grey levels as Pillow's is; DINOv3's does not
        round. Frames of the right size are not touched.

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
            torch.tensor(values, device=pixels_F3SS.device).view(3, 1, 1)
            for values in (self.processor.mean, self.processor.std)
        )
        return pixels_F3SS.mul_(1 / (1 / self.processor.factor * std_311)).sub_(mean_311 / std_311)

    def _scale(self, frames_F3HW: Tensor) -> Tensor:
        size, mode = (self.image_px, self.image_px), self.processor.resample
        if not len(frames_F3HW):  # a clip that ended before its neighbours in a batch; interpolate takes no empty ones
            return frames_F3HW.new_zeros(0, 3, *size)
        if mode == "nearest":
            at_S = torch.from_numpy(_nearest(frames_F3HW.shape[-1], self.image_px)).to(frames_F3HW.device)
            return frames_F3HW[:, :, at_S][..., at_S]
        if not self.processor.whole_levels:
            return F.interpolate(frames_F3HW.float(), size, mode=mode, antialias=True)
        if frames_F3HW.device.type == "cpu":
            return F.interpolate(frames_F3HW, size, mode=mode, antialias=True)
        # Other devices have no product on bytes: round as it does.
        return F.interpolate(frames_F3HW.float(), size, mode=mode, antialias=True).round_().clamp_(0, 255)


def _nearest(source_px: int, target_px: int) -> NDArray[np.int64]:
    """Return where Pillow takes each pixel from: it adds up steps, which decides where a middle falls on an edge."""
    step = source_px / target_px
    middles = np.cumsum(np.concatenate([[step / 2], np.full(target_px - 1, step)]))
    return middles.astype(np.int64).clip(max=source_px - 1)
