"""Streams that advance together: checking a chunk, walking it, and writing down what came out.

Shapes: B streams, F frames of a stream, S streams that have a frame at a step, R frames of all streams, L layers,
N tokens, D width, E embedding width, P patches a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from reuse_models.flops import PARTS
from reuse_models.method import Chunk, Encoded, Work
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit


def check_chunk(chunk: Chunk, vit: Vit, num_streams: int) -> None:
    """Refuse a chunk that does not fit the tower or the memory, before any work.

    Raises:
        ValueError: A frame or codec grid of another size, or another number of streams.
    """
    if not len(chunk.pixels) == len(chunk.ended) == num_streams:
        raise ValueError(
            f"chunk: got {len(chunk.pixels)} streams of frames and {len(chunk.ended)} flags, expected {num_streams} "
            "as in the memory; start a memory for this many streams"
        )
    for pixels_F3HW in chunk.pixels:
        vit.check_pixels(pixels_F3HW)
    if chunk.codec is None:
        return
    if len(chunk.codec) != num_streams:
        raise ValueError(f"chunk: got codec grids of {len(chunk.codec)} streams, expected {num_streams}; pass one each")
    side = vit.shape.patches_per_side
    for pixels_F3HW, codec_F4PP in zip(chunk.pixels, chunk.codec, strict=True):
        expected = (len(pixels_F3HW), 4, side, side)
        if tuple(codec_F4PP.shape) != expected:
            raise ValueError(
                f"codec grid: got {list(codec_F4PP.shape)}, expected {list(expected)}; "
                "transcode to 16 px a patch of this tower"
            )


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of every stream that still has one in this chunk."""

    streams_S: Tensor
    """int64: which streams, ascending."""
    rows_S: Tensor
    """int64: their rows in the record."""
    frames_S3HW: Tensor
    whole: bool
    """All B streams take part, so that state may be used where it lies."""


def steps(chunk: Chunk, device: torch.device) -> Iterator[Step]:
    """Walk a chunk frame by frame over all its streams; indices and frames lie on the tower's device."""
    lengths = [len(pixels) for pixels in chunk.pixels]
    starts = list(accumulate(lengths, initial=0))
    for index in range(max(lengths, default=0)):
        streams = [stream for stream, length in enumerate(lengths) if index < length]
        yield Step(
            streams_S=torch.tensor(streams, device=device),
            rows_S=torch.tensor([starts[stream] + index for stream in streams], device=device),
            frames_S3HW=torch.stack([chunk.pixels[stream][index] for stream in streams]).to(device),
            whole=len(streams) == len(lengths),
        )


FRAMES_PER_BATCH = 16
"""Frames put through a frame-wise method at once: keeps ViT-L's widest buffer near 70 MB."""


def batches(chunk: Chunk, rows: Sequence[int], device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Walk chosen rows of the record, ascending, in batches over all streams, where a frame is a frame.

    Yields the place of each batch in `rows`, and its frames [batch, 3, H, W] on the device.
    """
    frames = [frame_3HW for pixels_F3HW in chunk.pixels for frame_3HW in pixels_F3HW]
    for start in range(0, len(rows), FRAMES_PER_BATCH):
        place = slice(start, min(start + FRAMES_PER_BATCH, len(rows)))
        yield place, torch.stack([frames[row] for row in rows[place]]).to(device)


Rows = Tensor | slice | list[int]


class Record:
    """What a call produces for R frames of B streams, stream after stream, preallocated."""

    def __init__(self, shape: VitShape, chunk: Chunk, device: torch.device) -> None:
        self._shape = shape
        self.device = device
        self._lengths = [len(pixels) for pixels in chunk.pixels]
        num_rows = self.num_rows = sum(self._lengths)
        self.embeddings_RE = torch.zeros(num_rows, shape.embed_dim, device=device)
        self.reuse_RLN = torch.zeros(num_rows, shape.num_layers - 1, shape.num_tokens, dtype=torch.bool, device=device)
        self._units: dict[str, Tensor] = {}

    def add_work(self, part: str, rows_S: Rows, units_S: Tensor | int, layer: int = 0) -> None:
        """Add units to a part of some rows; `layer` stays 0 for what runs once a frame."""
        self._part(part)[rows_S, layer] += units_S

    def add_dense(self, work: Work, rows_S: Rows) -> None:
        """Add the same work, given for one frame, to some rows."""
        for part, units_1K in work.parts.items():
            self._part(part)[rows_S] += units_1K.to(self.device)

    def encoded(self, memory: Any) -> Encoded:
        """Split by stream."""
        if not self._units:  # nothing was computed, which is work with a row for every frame as well
            self._part("patch_embedding")
        units = {name: torch.split(units_RK.cpu(), self._lengths) for name, units_RK in self._units.items()}
        return Encoded(
            embeddings=torch.split(self.embeddings_RE, self._lengths),
            reuse=torch.split(self.reuse_RLN, self._lengths),
            work=tuple(
                Work({name: by_stream[stream] for name, by_stream in units.items()})
                for stream in range(len(self._lengths))
            ),
            memory=memory,
        )

    def _part(self, part: str) -> Tensor:
        if part not in self._units:
            columns = self._shape.num_layers if PARTS[part].per_layer else 1
            rows = len(self.embeddings_RE)
            self._units[part] = torch.zeros(rows, columns, dtype=torch.int64, device=self.device)
        return self._units[part]


def shares_of_cores(frames_of_streams: Sequence[int], device: torch.device) -> list[list[int]]:
    """Divide streams among the cores, for `map_on_cores`, so that each has about as many frames to do.

    A stream stays whole, and the longest are given out first (Graham, SIAM J. Appl. Math., 1969); those without frames
    are left out. On an accelerator all are one share.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    streams = [stream for stream, num_frames in enumerate(frames_of_streams) if num_frames]
    # Cores left over by a few streams serve better within each operator.
    if cores < 2 or len(streams) < cores:
        return [streams]
    shares: list[list[int]] = [[] for _ in range(cores)]
    num_frames = [0] * cores
    for stream in sorted(streams, key=lambda stream: -frames_of_streams[stream]):
        core = num_frames.index(min(num_frames))
        shares[core].append(stream)
        num_frames[core] += frames_of_streams[stream]
    return [sorted(share) for share in shares]


@contextmanager
def map_on_cores(num_parts: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map` that gives each of so many parts a thread with one core; the built-in one for a single part."""
    if num_parts == 1:
        yield map
        return
    cores = torch.get_num_threads()
    # An operator's number of threads belongs to the thread that calls it; the number it is set to last is also what
    # later threads begin with, so that the caller's is set again.
    with ThreadPoolExecutor(num_parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool.map
        finally:
            torch.set_num_threads(cores)
