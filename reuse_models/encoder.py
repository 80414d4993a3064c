"""A Hugging Face tower with a method laid over it: whole videos in, embeddings out.

Shapes: F frames of a video, S the tower's side in pixels, P patches a side, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from reuse_models.flops import flops_per_frame
from reuse_models.method import Chunk, Encoded, MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.hugging_face import from_hf

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_FRAMES = 32
"""Frames of each video that a method gets at once: bounds memory, changes nothing else."""


class Encoder:
    """Call it on videos. For one without an end, give `method` chunk after chunk yourself (`reuse_models.method`)."""

    def __init__(self, model: PreTrainedModel, config: MethodConfig, image_px: int | None = None) -> None:
        """Copy the model's vision tower and build the method on it; `reuse_models.apply` says what is refused."""
        if isinstance(config, ReuseVitConfig) and config.weights is None and config.forced_rate is None:
            raise ValueError(
                "reusevit: got no weights, expected those of a fit, since untrained decisions mean nothing; give "
                "ReuseVitConfig(weights=...), or forced_rate to measure speed"
            )
        self.vit = from_hf(model, image_px)
        self.method = config.build(self.vit)

    @overload
    def __call__(self, videos: Tensor, codec: Tensor | None = None) -> Tensor: ...

    @overload
    def __call__(self, videos: Sequence[Tensor], codec: Sequence[Tensor] | None = None) -> list[Tensor]: ...

    def __call__(
        self, videos: Tensor | Sequence[Tensor], codec: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor | list[Tensor]:
        """Embed whole videos, in lockstep where there are several.

        Args:
            videos: One video's frames as the model's own image processor makes them, [F, 3, S, S]; or several videos.
            codec: Codec grids of the same frames, [F, 4, P, P] each, for ReuseViT, which reads them.

        Returns:
            Embeddings [F, E], float32, not normalised, in display order; a list of them for several videos.

        Raises:
            ValueError: A frame or codec grid does not fit the tower, or grids are lacking that the method reads.
        """
        if isinstance(videos, Tensor):
            assert codec is None or isinstance(codec, Tensor)
            return torch.cat([one.embeddings[0] for one in self._encode([videos], None if codec is None else [codec])])
        parts = self._encode(videos, codec)
        return [torch.cat([one.embeddings[stream] for one in parts]) for stream in range(len(videos))]

    def flops(self, video: Tensor, codec: Tensor | None = None) -> Tensor:
        """Return [F] float64: the FLOPs executed for each frame of one video, which is embedded to find out."""
        parts = self._encode([video], None if codec is None else [codec])
        return torch.cat([flops_per_frame(self.vit.shape, one.work[0]) for one in parts])

    @torch.inference_mode()
    def _encode(self, videos: Sequence[Tensor], codec: Sequence[Tensor] | Tensor | None) -> list[Encoded]:
        memory = self.method.start(len(videos))
        parts: list[Encoded] = []
        for start in range(0, max(map(len, videos), default=0), CHUNK_FRAMES):
            stop = start + CHUNK_FRAMES
            chunk = Chunk(
                pixels=tuple(pixels_F3SS[start:stop] for pixels_F3SS in videos),
                codec=None if codec is None else tuple(grid_F4PP[start:stop] for grid_F4PP in codec),
                ended=tuple(stop >= len(pixels_F3SS) for pixels_F3SS in videos),
            )
            parts.append(self.method.encode(chunk, memory))
            memory = parts[-1].memory
        return parts
