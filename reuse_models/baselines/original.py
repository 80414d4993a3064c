"""Original: every frame through the whole tower.

Shapes: B frames of all streams, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from reuse_models.baselines.frame_by_frame import FrameByFrame
from reuse_models.flops import dense_work
from reuse_models.method import Method
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalConfig:
    """Compute every token of every frame."""

    method: ClassVar[str] = "original"

    @property
    def setting(self) -> str:
        return "dense"

    def build(self, vit: Vit) -> Method:
        return Original(vit)


class Original(FrameByFrame):
    """The dense tower behind the interface of all methods."""

    def __init__(self, vit: Vit) -> None:
        super().__init__(vit, dense_work(vit.shape))

    def embed(self, frames_B3HW: Tensor) -> Tensor:
        embedding_BE: Tensor = self.vit(frames_B3HW)
        return embedding_BE
