"""What the encoder wrote about each macroblock, as one grid per frame: class, motion x, motion y, quantiser.

F frames, R macroblock rows, C columns (R = C = P for a square frame), M motion vectors of the F frames together.

Source: METHODS 1; layouts from FFmpeg's libavutil/motion_vector.h and video_enc_params.h, and the table that
FFmpeg's H.264 decoder prints under `debug=mb_type`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MotionBinning = Literal["destination", "published"]
"""Which macroblock a vector is filed under: the one it predicts, or the one the artifact computes from its source."""

WHOLE = 2.0
MID_QUANTISER = 26.0
"""With WHOLE and zero motion: what a frame without metadata gets."""

_MOTION_VECTOR_INT16 = 20
"""An AVMotionVector is 40 bytes; src_x, src_y, dst_x, dst_y are int16 at byte 6."""
_H264_PARAMETERS = 1


def fallback_grid(num_frames: int, rows: int, cols: int) -> NDArray[np.float32]:
    """Return [F, 4, R, C] for frames that carry no metadata."""
    grid_F4RC = np.zeros((num_frames, 4, rows, cols), np.float32)
    grid_F4RC[:, 0] = WHOLE
    grid_F4RC[:, 3] = MID_QUANTISER
    return grid_F4RC


def _class_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    by_first = np.zeros(256, np.uint8)
    for letters, value in (("SdD", 1), ("iIPA", 6)):
        by_first[[ord(letter) for letter in letters]] = value
    by_second = np.zeros(256, np.uint8)
    for letters, value in ((" ", 2), ("-|", 3), ("+", 4)):
        by_second[[ord(letter) for letter in letters]] = value
    return by_first, by_second


_BY_FIRST, _BY_SECOND = _class_tables()
_INTER = np.isin(np.arange(256), [ord(letter) for letter in "<>X"])


def macroblock_classes(rows_text: Sequence[str], rows: int, cols: int) -> NDArray[np.uint8]:
    """Read the classes from the decoder's log, three characters per macroblock.

    Args:
        rows_text: F·R messages of equal length: y, then the macroblocks of that row.
        rows: R.
        cols: C.

    Returns:
        [F, R, C]: skip or direct 1, 16x16 2, 16x8 or 8x16 3, 8x8 4, intra 6.

    Raises:
        ValueError: A message is not such a row.
    """
    width = 5 + 3 * cols  # "%3d " before, a newline after
    joined = "".join(rows_text).encode("latin-1", "replace")
    if len(joined) != len(rows_text) * width or any(len(text) != width for text in rows_text):
        joined = "".join(text[-width:].rjust(width) for text in rows_text).encode("latin-1", "replace")
    table_FRW = np.frombuffer(joined, np.uint8).reshape(-1, rows, width)
    first_FRC = table_FRW[:, :, 4 : 4 + 3 * cols : 3]
    second_FRC = table_FRW[:, :, 5 : 5 + 3 * cols : 3]
    class_FRC = np.where(_INTER[first_FRC], _BY_SECOND[second_FRC], _BY_FIRST[first_FRC])
    if not class_FRC.all():
        bad = np.argwhere(class_FRC == 0)[0]
        letters = chr(first_FRC[tuple(bad)]) + chr(second_FRC[tuple(bad)])
        raise ValueError(f"macroblock type: got {letters!r}, expected one of SdDiIPA<>X; decode with FFmpeg 8")
    return class_FRC


def mean_motion(vectors: Sequence[bytes], rows: int, cols: int, binning: MotionBinning) -> NDArray[np.float32]:
    """Average the vectors of each macroblock, both reference lists together, not weighted by size.

    Args:
        vectors: Per frame its AVMotionVector array; empty where it has none.
        rows: R.
        cols: C.
        binning: Which macroblock a vector belongs to.

    Returns:
        [F, 2, R, C]: (destination − source) / 16 in x and y; 0 where there is none.
    """
    num_frames = len(vectors)
    counts_F = [len(buffer) // (2 * _MOTION_VECTOR_INT16) for buffer in vectors]
    fields_M = np.frombuffer(b"".join(vectors), np.int16).reshape(-1, _MOTION_VECTOR_INT16)
    src_M2 = fields_M[:, 3:5].astype(np.int64)
    dst_M2 = fields_M[:, 5:7].astype(np.int64)
    block_M2 = dst_M2 >> 4 if binning == "destination" else (src_M2 - 8) >> 4
    col_M, row_M = block_M2[:, 0], block_M2[:, 1]
    inside_M = (col_M >= 0) & (col_M < cols) & (row_M >= 0) & (row_M < rows)
    cell_M = (np.repeat(np.arange(num_frames), counts_F) * rows + row_M) * cols + col_M
    cell_M, moved_M2 = cell_M[inside_M], (dst_M2 - src_M2)[inside_M]
    num_cells = num_frames * rows * cols
    divisor = 16.0 * np.maximum(np.bincount(cell_M, minlength=num_cells), 1)
    mean = [np.bincount(cell_M, moved_M2[:, axis], num_cells) / divisor for axis in (0, 1)]
    return np.stack([axis.reshape(num_frames, rows, cols) for axis in mean], axis=1).astype(np.float32)


def quantisers(parameters: Sequence[bytes], rows: int, cols: int) -> NDArray[np.float32]:
    """Read each macroblock's quantiser.

    Args:
        parameters: Per frame its AVVideoEncParams; empty where the decoder exported none.
        rows: R.
        cols: C.

    Returns:
        [F, R, C], 0..51; MID_QUANTISER where a frame or block has none.
    """
    quantiser_FRC = np.full((len(parameters), rows, cols), MID_QUANTISER, np.float32)
    by_header: dict[tuple[int, bytes], list[int]] = {}
    for index, buffer in enumerate(parameters):  # frames of one stream share a layout, so this is one group
        if len(buffer) >= 32:
            by_header.setdefault((len(buffer), buffer[:28]), []).append(index)
    for (num_bytes, header), frames in by_header.items():
        num_blocks = int.from_bytes(header[:4], "little")
        offset, size = (int.from_bytes(header[at : at + 8], "little") for at in (8, 16))
        kind = int.from_bytes(header[24:28], "little", signed=True)
        if kind != _H264_PARAMETERS or num_blocks == 0 or offset + num_blocks * size > num_bytes:
            continue
        raw_FB = np.frombuffer(b"".join([parameters[index] for index in frames]), np.uint8)
        raw_FB = raw_FB.reshape(len(frames), num_bytes)
        base_F = np.ascontiguousarray(raw_FB[:, 28:32]).view(np.int32)[:, 0]
        blocks = np.ascontiguousarray(raw_FB[:, offset : offset + num_blocks * size]).view(np.int32)
        blocks = blocks.reshape(len(frames), num_blocks, size // 4)
        col, row = blocks[..., 0] >> 4, blocks[..., 1] >> 4
        inside = (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
        frame = np.broadcast_to(np.asarray(frames)[:, None], col.shape)
        value = base_F[:, None] + blocks[..., 4]
        quantiser_FRC[frame[inside], row[inside], col[inside]] = value[inside]
    return quantiser_FRC
