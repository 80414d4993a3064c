"""When a step is recorded and replayed, and what happens where it cannot be; CUDA itself is stood in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from reuse_models.reusevit.engines.cuda_graphs import Fused, Recorded


class Graph:
    """Replays nothing but a note."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def replay(self) -> None:
        self.notes.append("replay")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes: list[str] = []

    @contextmanager
    def recording(graph: Graph, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert pool == "pool"
        notes.append(f"record {capture_error_mode}")
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(notes))
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return notes


def test_a_step_runs_then_is_recorded_then_replayed(notes: list[str]) -> None:
    recorded = Recorded(records=True)
    for _ in range(3):
        recorded.run("a", lambda: notes.append("a"))
    recorded.run("b", lambda: notes.append("b"))
    assert notes == ["a", "record thread_local", "a", "replay", "replay", "b"]


def test_a_step_that_cannot_be_recorded_runs_on_with_one_warning(notes: list[str]) -> None:
    recorded, times = Recorded(records=True), 0

    def step() -> None:
        nonlocal times
        times += 1
        if times == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        notes.append("a")

    recorded.run("a", step)
    with pytest.warns(UserWarning, match="CUDA graphs: got 'operation not permitted when stream is capturing'"):
        recorded.run("a", step)
    recorded.run("a", step)
    assert notes == ["a", "record thread_local", "a", "a"]


def test_where_nothing_is_recorded_steps_run() -> None:
    recorded, notes = Recorded(records=False), []
    for _ in range(3):
        recorded.run("a", lambda: notes.append("a"))
    assert notes == ["a"] * 3


def test_a_function_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    double = Fused(lambda x: 2 * x, compiled=True)
    with pytest.warns(UserWarning, match="torch.compile: got 'no compiler'"):
        assert double(3) == 6
    assert double(4) == 8
    assert Fused(lambda x: 2 * x, compiled=False)(5) == 10
