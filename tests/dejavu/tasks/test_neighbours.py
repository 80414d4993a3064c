from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dejavu.tasks import neighbours
from dejavu.tasks.neighbours import Agreement, NeighbourSearch, agreement, choose_queries

Clips = dict[str, NDArray[np.floating]]


def some_clips(noise: float, counts: tuple[int, ...] = (30, 1, 45, 24)) -> Clips:
    """Clips of random directions, each moved a little."""
    rng = np.random.default_rng(0)
    clean = {f"c{number}": rng.standard_normal((count, 6)) for number, count in enumerate(counts)}
    moved = np.random.default_rng(1)
    return {name: x_FE + noise * moved.standard_normal(x_FE.shape) for name, x_FE in clean.items()}


def compare(ours: Clips, dense: Clips, parts: int = 1) -> Agreement:
    """As the score stage does it: the clips come in parts, twice."""
    queries = choose_queries({name: len(x_FE) for name, x_FE in dense.items()})
    assert queries is not None
    searches = []
    for clips in (ours, dense):
        search = NeighbourSearch(queries)
        pieces = [dict(list(clips.items())[part::parts]) for part in range(parts)]
        for piece in pieces:
            search.ask(piece)
        for piece in pieces:
            search.see(piece)
        searches.append(search)
    return agreement(*searches)


def by_loop(ours: Clips, dense: Clips) -> dict[str, list[float]]:
    """The definition, frame by frame."""

    def nearest(clips: Clips, name: str, frame: int) -> set[tuple[str, int]]:
        query_E = clips[name][frame] / np.linalg.norm(clips[name][frame])
        others = [
            (-float(query_E @ x_E / np.linalg.norm(x_E)), other, index)
            for other, x_FE in clips.items()
            if other != name
            for index, x_E in enumerate(x_FE)
        ]
        return {(other, index) for _, other, index in sorted(others)[:10]}

    return {
        name: [len(nearest(ours, name, frame) & nearest(dense, name, frame)) / 10 for frame in range(len(x_FE))]
        for name, x_FE in dense.items()
    }


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("at_once", [7, 8192])
def test_it_is_the_share_of_ten_that_stays(monkeypatch: pytest.MonkeyPatch, parts: int, at_once: int) -> None:
    monkeypatch.setattr(neighbours, "FRAMES_AT_ONCE", at_once)
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", at_once)
    ours, dense = some_clips(0.3), some_clips(0.0)
    found, expected = compare(ours, dense, parts), by_loop(ours, dense)
    assert found.by_clip.keys() == expected.keys()
    for name, shares in expected.items():
        assert found.by_clip[name] == pytest.approx(shares)
    assert found.mean == pytest.approx(np.concatenate(list(expected.values())).mean())
    assert 0.2 < found.mean < 0.9


def test_the_same_embeddings_keep_all_whatever_their_length() -> None:
    dense = some_clips(0.0)
    assert compare({name: (3 * x_FE).astype(np.float16) for name, x_FE in dense.items()}, dense).mean > 0.99
    assert compare(dense, dense).mean == 1


def test_frames_that_are_all_alike_keep_all() -> None:
    """Nothing moves, so that everything is as near as anything: ties go by the order of frames under both."""
    still = {name: np.repeat(x_FE[:1], len(x_FE), axis=0) for name, x_FE in some_clips(0.0).items()}
    rounded = {name: x_FE * (1 + 1e-7) for name, x_FE in still.items()}
    assert compare(rounded, still).mean == 1


def test_embeddings_that_know_nothing_keep_what_chance_keeps() -> None:
    dense = some_clips(0.0, counts=(400, 400, 400))
    rng = np.random.default_rng(2)
    blind = {name: rng.standard_normal(x_FE.shape) for name, x_FE in dense.items()}
    assert compare(blind, dense).mean == pytest.approx(10 / 800, abs=0.003)


def test_above_a_bound_queries_are_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_QUERIES", 10)
    queries = choose_queries({"a": 51, "b": 1, "c": 148})
    assert queries is not None
    assert {name: frames.tolist() for name, frames in queries.frames_of.items()} == {
        "a": [10, 30, 50],
        "b": [],
        "c": [18, 38, 58, 78, 98, 118, 138],
    }
    ours, dense = some_clips(0.3, (51, 1, 148)), some_clips(0.0, (51, 1, 148))
    found, expected = compare(ours, dense), by_loop(ours, dense)
    assert found.by_clip["c0"] == pytest.approx([expected["c0"][frame] for frame in (10, 30, 50)])
    assert found.of(["c1", "c0"])[1] == ["c0"] * 3


@pytest.mark.parametrize("counts", [[], [500], [500, 49], [1, 2, 3]])
def test_where_the_others_are_too_few_nothing_is_said(counts: list[int]) -> None:
    assert choose_queries({str(number): count for number, count in enumerate(counts)}) is None
    assert choose_queries({"a": 500, "b": 50}) is not None
