import numpy as np

from dejavu.synthetic.labelled_frames import BACKGROUND, labelled_frames
from dejavu.synthetic.world import COLOURS, KINDS


def test_frames_without_objects_are_background() -> None:
    frames = labelled_frames(np.random.default_rng(0), 6, (0, 0))
    assert frames.rgb.shape == (6, 128, 128, 3)
    assert not frames.visible.any()
    without_block = (frames.patch_kind == BACKGROUND).all(axis=1)
    assert without_block.any()


def test_a_labelled_patch_shows_the_colour_of_its_kind() -> None:
    frames = labelled_frames(np.random.default_rng(1), 12, (4, 6))
    patches = frames.rgb.reshape(12, 8, 16, 8, 16, 3).swapaxes(2, 3).reshape(12, 64, 256, 3).astype(float)
    for frame, patch in zip(*np.nonzero(frames.patch_kind >= 0), strict=True):
        painted = np.asarray(COLOURS[KINDS[frames.patch_kind[frame, patch]].colour], dtype=float)
        # A quarter of the patch or more points the way of the colour, whatever the light.
        pixels = patches[frame, patch]
        cosine = pixels @ painted / (np.linalg.norm(pixels, axis=1) * np.linalg.norm(painted) + 1e-9)
        assert (cosine > 0.95).mean() > 0.2


def test_a_kind_on_a_patch_is_visible_and_reaches_over_the_patch() -> None:
    frames = labelled_frames(np.random.default_rng(2), 8, (3, 5))
    middle = np.zeros((12, 12), dtype=bool)
    middle[4:8, 4:8] = True
    for frame, patch in zip(*np.nonzero(frames.patch_kind >= 0), strict=True):
        assert frames.visible[frame, frames.patch_kind[frame, patch]] > 0
        assert frames.extent[frame, patch][middle.ravel()].mean() > 0.1


def test_the_same_seed_draws_the_same_frames() -> None:
    one, other = (labelled_frames(np.random.default_rng(5), 3, (2, 4)) for _ in range(2))
    assert (one.rgb == other.rgb).all()
    assert (one.patch_kind == other.patch_kind).all()
