"""LowResolution against transformers' own towers on smaller frames, one frame at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.low_resolution import LowResolutionConfig
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.vit import Vit
from tests.reuse_models.conftest import _run as run
from tests.reuse_models.tower.test_hugging_face import TOWERS, embedding, randomised


def small(frame_3HW: Tensor, image_px: int) -> Tensor:
    return F.interpolate(frame_3HW[None], (image_px, image_px), mode="bicubic", antialias=True)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("image_px", [42, 56])
def test_ragged_streams_are_what_transformers_makes_of_smaller_frames(name: str, image_px: int) -> None:
    model = randomised(name)
    more = {} if "dino" in name else {"interpolate_pos_encoding": True}
    clips = tuple(torch.randn(length, 3, 70, 70) for length in (5, 1, 3))
    vit = from_hf(model)
    encoded = run(LowResolutionConfig(image_px=image_px).build(vit), clips, 2)
    for stream, clip in enumerate(clips):
        for frame_3HW, embedding_E in zip(clip, encoded.embeddings[stream], strict=True):
            expected_E = embedding(model, small(frame_3HW, image_px), **more)[0]
            torch.testing.assert_close(embedding_E, expected_E, atol=1e-4, rtol=1e-4)
        assert not encoded.reuse[stream].any()
        flops_F = flops_per_frame(vit.shape, encoded.work[stream])
        assert flops_F.tolist() == [dense_flops(vit.at_size(image_px).shape)] * len(clip)


def test_what_the_tower_does_not_see_is_not_scaled_in(clip_vit: Vit) -> None:
    """A side of 35 px in patches of 8 has 4 whole ones: the last 3 px are nobody's."""
    vit = Vit.random(replace(clip_vit.shape, image_px=35))
    method = LowResolutionConfig(image_px=24).build(vit)
    clip = torch.randn(2, 3, 35, 35)
    beyond = clip.clone()
    beyond[:, :, 32:], beyond[:, :, :, 32:] = 9.0, 9.0
    first, second = run(method, (clip,)).embeddings[0], run(method, (beyond,)).embeddings[0]
    assert torch.equal(first, second)
    with torch.no_grad():
        torch.testing.assert_close(first[:1], vit.at_size(24)(small(clip[0, :, :32, :32], 24)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_px", [0, 12, 32, 40])
def test_a_size_that_is_not_some_of_the_towers_patches_is_refused(clip_vit: Vit, image_px: int) -> None:
    with pytest.raises(ValueError, match=f"image_px: got {image_px}, expected"):
        LowResolutionConfig(image_px=image_px).build(clip_vit)


def test_a_tower_of_one_patch_is_refused(clip_vit: Vit) -> None:
    with pytest.raises(ValueError, match="image_px: got a tower of one patch"):
        LowResolutionConfig(image_px=8).build(Vit.random(replace(clip_vit.shape, image_px=8)))
