"""Original: every frame through the whole tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
        return FrameByFrame(vit, dense_work(vit.shape))
