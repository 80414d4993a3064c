"""Streams that advance together."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from reuse_models.method import Chunk
from reuse_models.streams import batches, map_on_cores, shares_of_cores, steps

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def chunk_of(lengths: Sequence[int]) -> Chunk:
    """Frames that are their stream's number and their own."""
    pixels = [
        torch.tensor([[stream, frame] for frame in range(length)], dtype=torch.float32).reshape(-1, 2, 1, 1)
        for stream, length in enumerate(lengths)
    ]
    return Chunk(pixels=tuple(pixels), codec=None, ended=(False,) * len(lengths))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("frames", [[4, 4, 4, 4], [16, 1, 1, 1, 1, 12], [5, 5, 5], [0, 0, 8, 8], [3, 9, 0]])
def test_cores_have_about_as_many_frames_each(frames: list[int]) -> None:
    shares = shares_of_cores(frames, CPU)
    assert len(shares) == 2
    assert all(share == sorted(share) for share in shares)
    assert sorted(stream for share in shares for stream in share) == [at for at, count in enumerate(frames) if count]
    most = max(sum(frames[stream] for stream in share) for share in shares)
    assert most <= 4 / 3 * max(sum(frames) / 2, *frames)  # Graham's bound


@pytest.mark.usefixtures("two_threads")
def test_long_streams_that_lie_side_by_side_are_divided() -> None:
    assert shares_of_cores([16, 16, 2, 2], CPU) == [[0, 2], [1, 3]]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("frames", [[7], [0, 7, 0], [0, 0], []])
def test_fewer_streams_than_cores_have_all_cores(frames: list[int]) -> None:
    assert shares_of_cores(frames, CPU) == [[stream for stream, count in enumerate(frames) if count]]


def test_one_core_has_all_streams() -> None:
    assert shares_of_cores([7, 1, 3], CPU) == [[0, 1, 2]]


@pytest.mark.usefixtures("two_threads")
def test_an_accelerator_has_all_streams() -> None:
    assert shares_of_cores([7, 1], torch.device("cuda")) == [[0, 1]]


@pytest.mark.usefixtures("two_threads")
def test_each_part_has_a_thread_with_one_core() -> None:
    with map_on_cores(2) as each:
        assert list(each(lambda part: (part, torch.get_num_threads()), range(2))) == [(0, 1), (1, 1)]
    assert torch.get_num_threads() == 2


def test_steps_leave_out_streams_that_have_ended() -> None:
    found = [
        (step.streams_S.tolist(), step.rows_S.tolist(), step.frames_S3HW.flatten(1).tolist(), step.whole)
        for step in steps(chunk_of([2, 1]), CPU)
    ]
    assert found == [([0, 1], [0, 2], [[0, 0], [1, 0]], True), ([0], [1], [[0, 1]], False)]


def test_batches_take_rows_over_all_streams() -> None:
    rows = list(range(0, 40, 2))
    found = list(batches(chunk_of([25, 15]), rows, CPU))
    assert [place for place, _ in found] == [slice(0, 16), slice(16, 20)]
    frames = torch.cat([frames_X3HW for _, frames_X3HW in found]).flatten(1).tolist()
    assert frames == [[0, row] if row < 25 else [1, row - 25] for row in rows]
