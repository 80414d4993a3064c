from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.report.reuse_stream import follow
from dejavu.video.decode import DecodedFrames
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


def pieces(backbone: Backbone, lengths: tuple[int, ...]) -> Iterator[DecodedFrames]:
    """Frames that are as bright as their number says."""
    side, start = backbone.vit.shape.patches_per_side, 0
    for length in lengths:
        number_F = np.arange(start, start + length)
        rgb_FHWC = np.broadcast_to(number_F[:, None, None, None], (length, backbone.frame_px, backbone.frame_px, 3))
        codec_F4PP = np.zeros((length, 4, side, side), np.float32)
        codec_F4PP[:, 0] = number_F[:, None, None]
        yield DecodedFrames(rgb_FHWC.astype(np.uint8), codec_F4PP, number_F / 2, "P" * length, True)
        start += length


@pytest.mark.parametrize("config", [FrameSkipConfig(every=3), ReuseVitConfig(forced_rate=0.5)])
@pytest.mark.parametrize("lengths", [(11,), (4, 4, 3), (1, 10)])
def test_each_frame_comes_once_with_its_own_reuse(
    backbone: Backbone, config: MethodConfig, lengths: tuple[int, ...]
) -> None:
    frames = list(follow(config.build(backbone.vit), backbone, pieces(backbone, lengths)))
    assert [int(frame.rgb_HWC[0, 0, 0]) for frame in frames] == list(range(11))
    assert [frame.seconds for frame in frames] == [number / 2 for number in range(11)]
    shape = backbone.vit.shape
    assert {frame.reuse_LN.shape for frame in frames} == {(shape.num_layers - 1, shape.num_tokens)}
    reused = [bool(frame.reuse_LN.any()) for frame in frames]
    if isinstance(config, FrameSkipConfig):
        assert reused == [number % 3 != 0 for number in range(11)]
    else:
        assert reused == [False] + [True] * 10


def test_no_frame_gives_none(backbone: Backbone, tmp_path: Path) -> None:
    assert list(follow(FrameSkipConfig(every=2).build(backbone.vit), backbone, iter(()))) == []
