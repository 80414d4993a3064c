"""Single frames of the synthetic world with exact labels: what the embedded backbone is trained on.

Shapes: B frames, H, W pixels, K kinds, N patches of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dejavu.synthetic.world import (
    ANGLE_STEP_DEG,
    BLOCK,
    COLOURS,
    GREY,
    KINDS,
    Kind,
    Sprite,
    draw,
    noise_bank,
    texture,
    visible_fractions,
)

BACKGROUND = -1
UNCLEAR = -2

OBJECT_PX = (23.0, 40.0)
"""Smallest and largest object, in pixels of a frame of 128 px."""
BLOCK_PX = (18.0, 38.0)
LIGHT = (0.72, 1.25)
NOISE = (0.0, 10.0)
"""Standard deviation in grey levels."""
FRAMES_PER_BACKGROUND = 4
CELL_PX = 4
"""Side of the cells in which an object's extent is given."""


@dataclass(frozen=True, slots=True)
class LabelledFrames:
    """A batch of frames and what can be seen on them."""

    rgb: NDArray[np.uint8]
    """[B, H, W, 3]."""
    visible: NDArray[np.float32]
    """[B, K]: the visible share of each kind; 0 where it is absent."""
    patch_kind: NDArray[np.int64]
    """[B, N]: index into KINDS, BACKGROUND, or UNCLEAR where little of a kind is on the patch."""
    extent: NDArray[np.bool_]
    """[B, N, 144]: where the object under a patch is seen, in 12 x 12 cells of 4 px with the patch in their middle."""


def object_rgb(kind: Kind, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the kind's colour as one object wears it: no two are painted quite alike."""
    red, green, blue = (float(level + rng.uniform(-14, 14)) for level in COLOURS[kind.colour])
    return red, green, blue


def grey_block(rng: np.random.Generator, side_px: int, scale: float = 1.0) -> Sprite:
    """Return an occluder somewhere in the frame; at a scale of 1 it suits a frame of 128 px."""
    level = GREY[0] + rng.uniform(-35, 35)
    size_px = round(scale * rng.uniform(*BLOCK_PX))
    x_px, y_px = rng.uniform(0, side_px, size=2)
    return Sprite(BLOCK, (level, level, level), size_px, 0, float(x_px), float(y_px))


def labelled_frames(
    rng: np.random.Generator, num_frames: int, num_objects: tuple[int, int], *, side_px: int = 128, patch_px: int = 16
) -> LabelledFrames:
    """Draw frames of unrelated objects, all of different kinds, between the fewest and the most on each.

    Objects are as large as on a frame of 128 px, whatever the side: a smaller frame is a window of one.
    """
    patches = side_px // patch_px
    rgb = np.empty((num_frames, side_px, side_px, 3), dtype=np.uint8)
    visible = np.zeros((num_frames, len(KINDS)), dtype=np.float32)
    patch_kind = np.empty((num_frames, patches * patches), dtype=np.int64)
    extent = np.empty((num_frames, patches * patches, (3 * patch_px // CELL_PX) ** 2), dtype=np.bool_)
    noise = noise_bank(rng, side_px, side_px)
    for frame in range(num_frames):
        if frame % FRAMES_PER_BACKGROUND == 0:
            background = texture(rng, side_px, side_px)
        chosen = rng.choice(len(KINDS), size=rng.integers(num_objects[0], num_objects[1] + 1), replace=False)
        sprites = [_sprite(KINDS[index], rng, side_px) for index in chosen]
        kinds = [int(index) for index in chosen]
        if rng.random() < 0.3:
            place = int(rng.integers(0, len(sprites) + 1))
            sprites.insert(place, grey_block(rng, side_px))
            kinds.insert(place, BACKGROUND)
        row, column = rng.integers(0, side_px, size=2)
        window = noise[row : row + side_px, column : column + side_px]
        drawing = draw(sprites, background, rng.uniform(*LIGHT), window * np.float32(rng.uniform(*NOISE)))
        rgb[frame] = drawing.rgb
        for kind, share in zip(kinds, visible_fractions(sprites, drawing.owner), strict=True):
            if kind >= 0:
                visible[frame, kind] = share
        patch_kind[frame], owners = _patch_kinds(drawing.owner, np.asarray([*kinds, BACKGROUND]), patch_px)
        extent[frame] = _extents(drawing.owner, owners, patch_px)
    return LabelledFrames(rgb, visible, patch_kind, extent)


def _sprite(kind: Kind, rng: np.random.Generator, side_px: int) -> Sprite:
    size_px = round(rng.uniform(*OBJECT_PX))
    angle_deg = int(rng.integers(-3, 4)) * ANGLE_STEP_DEG
    x_px, y_px = rng.uniform(0.02 * side_px, 0.98 * side_px, size=2)
    return Sprite(kind.shape, object_rgb(kind, rng), size_px, angle_deg, float(x_px), float(y_px))


def _patch_kinds(
    owner: NDArray[np.int16], kinds: NDArray[np.int64], patch_px: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return [N] twice: the kind that covers more than a quarter of each patch, and the index of its sprite."""
    patches, num_owners = len(owner) // patch_px, len(kinds)
    # The background's owner is -1: it reads the last entry of `kinds`.
    owners = owner.reshape(patches, patch_px, patches, patch_px).swapaxes(1, 2).reshape(patches * patches, -1)
    cells = np.arange(len(owners))[:, None] * num_owners + owners % num_owners
    counts = np.bincount(cells.ravel(), minlength=len(owners) * num_owners).reshape(len(owners), num_owners)
    share = np.where(kinds >= 0, counts, 0) / patch_px**2
    labels = np.where(share.sum(axis=1) < 0.06, BACKGROUND, UNCLEAR)
    best = share.argmax(axis=1)
    return np.where(share.max(axis=1) > 0.25, kinds[best], labels).astype(np.int64), best


def _extents(owner: NDArray[np.int16], patch_owner: NDArray[np.int64], patch_px: int) -> NDArray[np.bool_]:
    """Return [N, 144]: which cells in and around each patch show the patch's own sprite."""
    cells = owner[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX]
    step = patch_px // CELL_PX
    around = np.lib.stride_tricks.sliding_window_view(np.pad(cells, step, constant_values=-1), (3 * step, 3 * step))
    around = around[::step, ::step].reshape(len(patch_owner), -1)
    same: NDArray[np.bool_] = around == patch_owner[:, None]
    return same
