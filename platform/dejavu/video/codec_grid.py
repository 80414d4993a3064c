"""What the encoder wrote about each macroblock, as one grid per frame: class, motion x, motion y, quantiser.

F frames, R macroblock rows, C columns (R = C = P for a square frame), M motion vectors of the F frames together.

Source: docs/methods.md; layouts from FFmpeg's libavutil/motion_vector.h and video_enc_params.h, and the table that
FFmpeg's H.264 decoder prints under `debug=mb_type`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from av.buffer import Buffer
from numpy.typing import NDArray

MotionBinning = Literal["destination", "published"]
"""Which macroblock a vector is filed under: the one it predicts, or the one the artifact computes from its source."""

WHOLE = 2.0
MID_QUANTISER = 26.0
"""With WHOLE and zero motion: what a frame without metadata gets."""

_MOTION_VECTOR_INT16 = 20
"""An AVMotionVector is 40 bytes: the reference's direction, an int32, negative for an earlier frame, at byte 0;
src_x, src_y, dst_x, dst_y are int16 at byte 6."""
_H264_PARAMETERS = 1
_PARAMETER_HEADER_BYTES = 32


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
    """Read the classes from F·R messages of the decoder's log: y, then three characters per macroblock of that row.

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


def mean_motion(
    vectors_M4: NDArray[np.int16], frame_M: NDArray[np.intp], shape: tuple[int, int, int], binning: MotionBinning
) -> NDArray[np.float32]:
    """Average the vectors of each macroblock, both reference lists together, not weighted by size.

    Args:
        vectors_M4: src_x, src_y, dst_x, dst_y of the centre of each predicted partition, in pixels.
        frame_M: The frame 0..F-1 that each vector belongs to.
        shape: F, R, C.
        binning: Which macroblock a vector belongs to.

    Returns:
        [F, 2, R, C]: (destination − source) / 16 in x and y; 0 where there is none.
    """
    num_frames, rows, cols = shape
    block_M2 = (vectors_M4[:, :2] - 8) >> 4 if binning == "published" else vectors_M4[:, 2:] >> 4
    moved_M2 = np.subtract(vectors_M4[:, 2:], vectors_M4[:, :2], dtype=np.float64)
    col_M, row_M = block_M2[:, 0], block_M2[:, 1]
    cell_M = (frame_M * rows + row_M) * cols + col_M
    inside_M = (col_M >= 0) & (col_M < cols) & (row_M >= 0) & (row_M < rows)
    if not inside_M.all():
        cell_M, moved_M2 = cell_M[inside_M], moved_M2[inside_M]
    num_cells = num_frames * rows * cols
    divisor = 16.0 * np.maximum(np.bincount(cell_M, minlength=num_cells), 1)
    motion_F2RC = np.empty((num_frames, 2, rows, cols), np.float32)
    for axis in (0, 1):
        mean = np.bincount(cell_M, moved_M2[:, axis], num_cells) / divisor
        motion_F2RC[:, axis] = mean.reshape(num_frames, rows, cols)
    return motion_F2RC


def quantisers(parameters_FB: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """Read each macroblock's quantiser from the B bytes of each frame's AVVideoEncParams.

    Returns:
        [F, R, C], 0..51; MID_QUANTISER where a block has none, or for parameters of another codec.
    """
    num_frames, num_bytes = parameters_FB.shape
    quantiser_FRC = np.full((num_frames, rows, cols), MID_QUANTISER, np.float32)
    header = parameters_FB[0].tobytes()[:28]
    num_blocks = int.from_bytes(header[:4], "little")
    offset, size = (int.from_bytes(header[at : at + 8], "little") for at in (8, 16))
    kind = int.from_bytes(header[24:28], "little", signed=True)
    if kind != _H264_PARAMETERS or num_blocks == 0 or offset + num_blocks * size > num_bytes:
        return quantiser_FRC
    base_F1 = parameters_FB[:, 28:32].view(np.int32)
    blocks = parameters_FB[:, offset : offset + num_blocks * size].view(np.int32)
    blocks = blocks.reshape(num_frames, num_blocks, size // 4)
    col, row = blocks[..., 0] >> 4, blocks[..., 1] >> 4
    inside = (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
    frame = np.broadcast_to(np.arange(num_frames)[:, None], col.shape)
    value = base_F1 + blocks[..., 4]
    quantiser_FRC[frame[inside], row[inside], col[inside]] = value[inside]
    return quantiser_FRC


class SideDataBuffer:
    """Gathers what the decoder attached to the frames of one piece, in memory that is kept from piece to piece.

    Fresh memory would cost more than the reading: the system hands it out page by page.
    """

    def __init__(self, rows: int, cols: int) -> None:
        self.rows, self.cols = rows, cols
        self.vectors_M4 = np.empty((4096, 4), np.int16)
        self.num_vectors: list[int] = []
        self.end = 0
        self.parameters: dict[int, tuple[list[int], NDArray[np.uint8]]] = {}

    def add(self, vectors: Buffer | None, parameters: Buffer | None) -> None:
        """Keep one frame's AVMotionVector array and AVVideoEncParams; None where it has none."""
        number = len(self.num_vectors)
        count = 0
        if vectors is not None:
            entries = np.frombuffer(memoryview(vectors), np.int16).reshape(-1, _MOTION_VECTOR_INT16)
            fields = entries[:, 3:7]
            count = len(fields)
            if self.end + count > len(self.vectors_M4):
                self.vectors_M4 = np.resize(self.vectors_M4, (2 * (self.end + count), 4))
            self.vectors_M4[self.end : self.end + count] = fields
        self.end += count
        self.num_vectors.append(count)
        if parameters is not None and parameters.buffer_size >= _PARAMETER_HEADER_BYTES:
            size = parameters.buffer_size
            frames, kept = self.parameters.setdefault(size, ([], np.empty((16, size), np.uint8)))
            if len(frames) == len(kept):
                kept = np.resize(kept, (2 * len(kept), size))
                self.parameters[size] = (frames, kept)
            kept[len(frames)] = np.frombuffer(memoryview(parameters), np.uint8)
            frames.append(number)

    def take(self, rows_text: Sequence[str], binning: MotionBinning) -> NDArray[np.float32]:
        """Return the grids [F, 4, R, C] of the F frames added, and start anew.

        Args:
            rows_text: The F·R messages with their macroblock types; none gives the fallback grid.
            binning: Which macroblock a motion vector belongs to.

        Raises:
            ValueError: There are rows for another number of frames, or a macroblock type is unknown.
        """
        num_frames = len(self.num_vectors)
        grid_F4RC = fallback_grid(num_frames, self.rows, self.cols)
        if rows_text:
            if len(rows_text) != num_frames * self.rows:
                raise ValueError(
                    f"macroblock types: got {len(rows_text)} rows, expected {num_frames} frames of {self.rows}; "
                    "transcode the file first"
                )
            frame_M = np.repeat(np.arange(num_frames), self.num_vectors)
            shape = (num_frames, self.rows, self.cols)
            grid_F4RC[:, 0] = macroblock_classes(rows_text, self.rows, self.cols)
            grid_F4RC[:, 1:3] = mean_motion(self.vectors_M4[: self.end], frame_M, shape, binning)
            for frames, kept in self.parameters.values():
                if frames:
                    grid_F4RC[frames, 3] = quantisers(kept[: len(frames)], self.rows, self.cols)
        self.num_vectors.clear()
        self.end = 0
        for frames, _ in self.parameters.values():
            frames.clear()
        return grid_F4RC
