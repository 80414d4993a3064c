"""Reusing a vision transformer's computation between video frames: pure torch, no cluster, no files of video."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported by whoever computes: importing this package is free
    from transformers import PreTrainedModel

    from reuse_models.encoder import Encoder
    from reuse_models.method import MethodConfig


def apply(model: PreTrainedModel, config: MethodConfig, image_px: int | None = None) -> Encoder:
    """Lay a method over a Hugging Face vision tower; see `encoder.Encoder` for what comes back.

    Args:
        model: As `from_hf` takes it: CLIP, SigLIP, DINOv2 or DINOv3. It is copied, and stays as it is.
        config: Of any method, such as `EventfulConfig(refreshed_tokens=64)`.
        image_px: Side of the frames that it will see; that of the model's config unless given, which is not always that
            of its image processor (DINOv2: 518 and 224).

    Raises:
        ValueError: The model is of no family that is read, the config does not fit its tower, or the tower does not run
            at this size.
    """
    from reuse_models.encoder import Encoder  # noqa: PLC0415  see above

    return Encoder(model, config, image_px)
