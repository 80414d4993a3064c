"""The runtime knob: ask for a share of tokens, get it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from reuse_models.addon import Addon, addon_shape, save_addon
from reuse_models.calibrate import calibrate
from reuse_models.method import Chunk
from reuse_models.reusevit import ReuseVitConfig
from reuse_models.vit import Vit

Clips = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def clips(ragged_clips: tuple[Tensor, ...]) -> Clips:
    generator = torch.Generator().manual_seed(1)
    return [(clip, torch.rand(len(clip), 4, 4, 4, generator=generator)) for clip in ragged_clips]


@pytest.fixture
def config(clip_vit: Vit, tmp_path: Path) -> ReuseVitConfig:
    """An add-on whose decisions spread."""
    addon = Addon(addon_shape(clip_vit.shape))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for decision in addon.decisions:
            for weight in decision.parameters():
                weight.normal_(0.0, 0.5, generator=generator)
    save_addon(addon, tmp_path / "spread.safetensors")
    return ReuseVitConfig(weights=str(tmp_path / "spread.safetensors"))


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.6])
def test_the_requested_rate_is_what_a_run_reuses(
    clip_vit: Vit, config: ReuseVitConfig, clips: Clips, rate: float
) -> None:
    found = calibrate(config, clip_vit, clips, rate, tolerance=0.02)
    assert found.reached
    assert found.config.weights == config.weights
    method = found.config.build(clip_vit)
    pixels, codec = zip(*clips, strict=True)
    encoded = method.encode(Chunk(pixels, codec, (True,) * len(clips)), method.start(len(clips)))
    reused = torch.cat([reuse.flatten() for reuse in encoded.reuse]).float().mean()
    assert float(reused) == pytest.approx(rate, abs=0.021)


def test_a_rate_out_of_reach_is_said_to_be(clip_vit: Vit, config: ReuseVitConfig, clips: Clips) -> None:
    """Three of fourteen frames are dense."""
    found = calibrate(config, clip_vit, clips, 1.0, tolerance=0.02)
    assert not found.reached
    assert found.reuse_rate == pytest.approx(11 / 14 * 16 / 17, abs=0.01)


def test_what_cannot_be_calibrated_is_refused(clip_vit: Vit, clips: Clips) -> None:
    with pytest.raises(ValueError, match="reuse rate: got 80"):
        calibrate(ReuseVitConfig(), clip_vit, clips, 80)
    with pytest.raises(ValueError, match="forced rate"):
        calibrate(ReuseVitConfig(forced_rate=0.5), clip_vit, clips, 0.8)
    with pytest.raises(ValueError, match="no frames"):
        calibrate(ReuseVitConfig(), clip_vit, [], 0.8)
