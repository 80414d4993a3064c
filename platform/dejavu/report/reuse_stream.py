"""Frames of one video with what a method reused in each, as they come: for pictures, not for results.

F frames of a piece, H and W pixels, L - 1 boundaries (here named L, as in the map's own axis), N tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from dejavu.backbones.load import Backbone
from dejavu.video.decode import DecodedFrames
from reuse_models.method import Chunk, Method


@dataclass(frozen=True, slots=True)
class ReusedFrame:
    """One frame and what was reused in it."""

    rgb_HWC: NDArray[np.uint8]
    seconds: float
    reuse_LN: NDArray[np.bool_]
    """True where a token was reused at a boundary; CLS first where the tower has one."""


@torch.inference_mode()
def follow(method: Method, backbone: Backbone, pieces: Iterable[DecodedFrames]) -> Iterator[ReusedFrame]:
    """Encode a video piece by piece and yield its frames in display order, in constant memory.

    The pieces are consecutive, from its first frame on, and all of them are one segment.
    """
    device = method.vit.position.device
    memory = method.start(1)
    waiting: deque[tuple[NDArray[np.uint8], float]] = deque()
    for piece, following in pairwise(chain(pieces, [None])):
        assert piece is not None, "the last one follows alone"
        waiting.extend(zip(piece.rgb_FHWC, piece.seconds_F.tolist(), strict=True))
        chunk = Chunk(
            pixels=(backbone.preprocess(piece.rgb_FHWC),),
            codec=(torch.from_numpy(piece.codec_F4PP).to(device),),
            ended=(following is None,),
        )
        encoded = method.encode(chunk, memory)
        memory = encoded.memory
        for reuse_LN in encoded.reuse[0].cpu().numpy():
            yield ReusedFrame(*waiting.popleft(), reuse_LN)
