import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dejavu.backbones.image_processor import CLIP_MEAN, CLIP_STD, read_image_processor
from dejavu.backbones.preprocess import Preprocess


def smooth_frames(num_frames: int, side: int) -> np.ndarray:
    waves = np.linspace(0, 9, side)
    image = 127 + 60 * np.sin(waves)[:, None] + 60 * np.cos(2 * waves)[None]
    rng = np.random.default_rng(0)
    noisy = image[None, :, :, None] + rng.normal(0, 8, size=(num_frames, side, side, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("side", "image_px"), [(256, 224), (128, 128), (96, 128), (224, 64)])
def test_it_is_what_clips_own_processor_gives(side: int, image_px: int) -> None:
    frames = smooth_frames(3, side)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_px}, crop_size={"height": image_px, "width": image_px}
    )
    theirs = torch.as_tensor(np.stack(processor(list(frames))["pixel_values"]))
    ours = Preprocess(image_px)(frames)
    assert ours.shape == (3, 3, image_px, image_px)
    # One grey level is 0.015 after division by the smallest std; rounding, once per axis, may go either way at a half.
    assert (ours - theirs).abs().max() < 0.031
    assert ((ours - theirs).abs() > 1e-5).float().mean() < 0.02


def test_frames_of_the_right_size_are_only_normalised() -> None:
    frames = smooth_frames(2, 64)
    expected = (frames / 255 - np.asarray(CLIP_MEAN)) / np.asarray(CLIP_STD)
    assert Preprocess(64)(frames).numpy() == pytest.approx(expected.transpose(0, 3, 1, 2), abs=1e-5)


def test_the_frames_themselves_stay_as_they_are() -> None:
    frames = smooth_frames(1, 64)
    before = frames.copy()
    Preprocess(64)(frames)
    Preprocess(32)(torch.from_numpy(frames))
    assert (frames == before).all()


def test_no_frames_give_no_pixels() -> None:
    """A clip that ended before its neighbours in a batch: none of its frames, but of the tower's size."""
    assert Preprocess(28)(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 3, 28, 28)


def test_mean_and_std_are_the_configs() -> None:
    half = Preprocess(32, read_image_processor({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, "clip"))
    white = half(np.full((1, 32, 32, 3), 255, np.uint8))
    assert white.unique().tolist() == pytest.approx([1.0])
    assert Preprocess(32, read_image_processor(None, "clip")) == Preprocess(32)
    raw = Preprocess(32, read_image_processor({"do_normalize": False}, "clip"))
    assert raw(np.full((1, 32, 32, 3), 51, np.uint8)).unique().tolist() == pytest.approx([0.2])


@pytest.mark.parametrize("shape", [(2, 64, 48, 3), (2, 3, 64, 64), (64, 64, 3)])
def test_frames_that_are_not_square_rgb_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected square uint8 \[F, H, H, 3\]"):
        Preprocess(32)(np.zeros(shape, np.uint8))


def test_float_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of torch\.float32"):
        Preprocess(32)(torch.zeros(1, 64, 64, 3))
