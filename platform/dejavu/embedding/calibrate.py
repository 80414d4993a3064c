"""The bias on reuse decisions that gives a requested reuse rate, found on validation clips.

One trained add-on gives a whole curve: a bias moves every decision. The rate grows with it, so that a few runs at
fixed biases, interpolated (`bias_for`), answer for any rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dejavu.backbones.load import Backbone
from dejavu.embedding.encode import encode_batch
from dejavu.video.decode import DecodedFrames
from reuse_models.reusevit.method import ReuseVitConfig

PROBED_BIASES = (-8.0, -5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
CHUNK_FRAMES = 16


def rate_curve(config: ReuseVitConfig, backbone: Backbone, frames: Sequence[DecodedFrames]) -> list[float]:
    """Return the reuse rate that is really reached on these clips at each of PROBED_BIASES, dense frames counted in."""
    rates = []
    for bias in PROBED_BIASES:
        method = replace(config, decision_bias=bias).build(backbone.vit)
        encoded = encode_batch(method, backbone, frames, CHUNK_FRAMES)
        rates.append(float(np.concatenate([segment.reuse_rate_F for segment in encoded]).mean()))
    return rates
