"""Training windows on random numbers, for benchmarks of training."""

import torch
from torch import Tensor

from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.tower.shape import VitShape
from reuse_models.training.fit import Batch
from reuse_models.training.loss import Teacher


def make_batch(shape: VitShape, windows: int, seed: int = 2) -> Batch:
    """Draw C windows in which a third of the patches changes from frame to frame, and their teacher."""
    generator = torch.Generator().manual_seed(seed)
    patches, frames = shape.patches_per_side, len(PUBLISHED_PATTERN)
    pixels = moving_pixels(shape, windows, frames, generator)
    codec = torch.rand(windows, frames, 4, 4, patches, patches, generator=generator)
    embeddings = torch.randn(windows, frames, shape.embed_dim, generator=generator)
    return Batch(pixels, codec, Teacher(embeddings))


def moving_pixels(shape: VitShape, clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """Draw [C, F, 3, H, W], a third of whose patches change; frame by frame, so that little more is ever held."""
    patches, size = shape.patches_per_side, (3, shape.image_px, shape.image_px)
    pixels = torch.randn(clips, 1, *size, generator=generator).repeat(1, frames, 1, 1, 1)
    changed = torch.rand(clips * frames, patches, patches, generator=generator) < 1 / 3
    for frame, where in zip(pixels.flatten(0, 1), changed, strict=True):
        wide = where.repeat_interleave(shape.patch_px, 0).repeat_interleave(shape.patch_px, 1)
        frame.add_(wide * torch.randn(size, generator=generator))
    return pixels
