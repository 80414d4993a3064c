import numpy as np
import pytest

from dejavu.synthetic.world import (
    KINDS,
    SHAPES,
    Kind,
    Sprite,
    draw,
    own_pixels,
    shape_cover,
    texture,
    visible_fractions,
)


def square_at(x_px: float, y_px: float, size_px: int = 20) -> Sprite:
    return Sprite("block", (255.0, 0.0, 0.0), size_px, 0, x_px, y_px)


def test_kinds_are_all_pairs_of_a_colour_and_a_shape() -> None:
    assert len(KINDS) == len(set(KINDS)) == 48
    assert Kind("orange", "ring").phrase == "an orange ring"
    assert Kind("red", "circle").phrase == "a red circle"


def test_a_circle_covers_its_area() -> None:
    cover = shape_cover("circle", 200, 0)
    assert cover.mean() == pytest.approx(np.pi * 0.92**2 / 4, abs=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_keeps_a_shapes_area(shape: str) -> None:
    assert shape_cover(shape, 120, 15).mean() == pytest.approx(shape_cover(shape, 120, 0).mean(), rel=0.03)


def test_shapes_differ_from_each_other() -> None:
    masks = [shape_cover(shape, 64, 0) > 0.5 for shape in SHAPES]
    for index, one in enumerate(masks):
        for other in masks[:index]:
            assert (one & other).sum() / (one | other).sum() < 0.85


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape: got 'heart', expected one of circle"):
        shape_cover("heart", 10, 0)


def test_a_covered_object_is_seen_by_the_share_that_is_left() -> None:
    sprites = [square_at(30, 30), square_at(40, 30)]
    owner = own_pixels(sprites, 60, 60)
    assert visible_fractions(sprites, owner).tolist() == [0.5, 1.0]


def test_an_object_beyond_the_edge_is_seen_by_the_share_inside() -> None:
    sprites = [square_at(0, 30), square_at(-50, 30)]
    assert visible_fractions(sprites, own_pixels(sprites, 60, 60)).tolist() == [0.5, 0.0]


def test_a_frame_shows_the_colour_under_the_light() -> None:
    background, silent = np.full((40, 40, 3), 100, np.float32), np.zeros((40, 40, 3), np.float32)
    drawing = draw([square_at(20, 20)], background, 0.5, silent)
    assert drawing.rgb[20, 20].tolist() == [127, 0, 0]
    assert drawing.rgb[0, 0].tolist() == [50, 50, 50]
    assert drawing.owner[20, 20] == 0
    assert drawing.owner[0, 0] == -1


def test_a_background_has_texture_and_no_loud_colour() -> None:
    background = texture(np.random.default_rng(3), 64, 96)
    assert background.shape == (64, 96, 3)
    assert background.std(axis=(0, 1)).max() > 1
    assert (background.max(axis=2) - background.min(axis=2)).max() < 90
