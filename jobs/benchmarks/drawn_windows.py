"""Training windows on random numbers, for benchmarks of training."""

import torch

from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.tower.shape import VitShape
from reuse_models.training.fit import Batch
from reuse_models.training.loss import Teacher


def make_batch(shape: VitShape, windows: int) -> Batch:
    """Draw C windows in which a third of the patches changes from frame to frame, and their teacher."""
    generator = torch.Generator().manual_seed(2)
    side, patches, frames = shape.image_px, shape.patches_per_side, len(PUBLISHED_PATTERN)
    first = torch.randn(windows, 1, 3, side, side, generator=generator)
    changed = (torch.rand(windows, frames, 1, patches, patches, generator=generator) < 1 / 3).float()
    changed = changed.repeat_interleave(shape.patch_px, 3).repeat_interleave(shape.patch_px, 4)
    pixels = first + changed * torch.randn(windows, frames, 3, side, side, generator=generator)
    codec = torch.rand(windows, frames, 4, 4, patches, patches, generator=generator)
    embeddings = torch.randn(windows, frames, shape.embed_dim, generator=generator)
    return Batch(pixels, codec, Teacher(embeddings))
