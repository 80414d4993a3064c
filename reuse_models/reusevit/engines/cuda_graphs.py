"""What a GPU is given at once instead of call by call: steps recorded as CUDA graphs, chains of small operators fused.

Elsewhere steps and chains simply run. Neither changes what is computed beyond rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Recorded:
    """Steps that read and write fixed memory alone; each runs, is recorded when it comes again, and then replayed.

    The first run is the warm-up that a recording asks for: compilers, product libraries and buffers are ready after it.
    """

    def __init__(self, records: bool) -> None:
        self.records = records
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # Graphs run one after another and leave nothing behind but fixed memory: one pool serves their temporaries.
        self._pool = torch.cuda.graph_pool_handle() if records else None

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Do the step that `key` names; the same key stands for the same operators on the same memory."""
        graph = self._graphs.get(key)
        if graph is None and self.records and key in self._seen:
            graph = self._record(key, step)
        if graph is None:
            self._seen.add(key)
            step()
        else:
            graph.replay()

    def _record(self, key: Hashable, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, decoders among them, may allocate meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            self.records = False
            reason = str(error).splitlines()[0]
            warnings.warn(f"CUDA graphs: got {reason!r}, expected a recording; going on without", stacklevel=2)
            return None
        self._graphs[key] = graph
        return graph


class Fused(Generic[P, R]):
    """A function of tensors without side effects, compiled where wanted: one kernel instead of a dozen."""

    def __init__(self, plain: Callable[P, R], *, compiled: bool) -> None:
        self._plain = plain
        self._call: Callable[P, R] = torch.compile(plain) if compiled else plain

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; where it cannot be compiled, as it is from then on."""
        if self._call is not self._plain:
            try:
                return self._call(*args, **kwargs)
            except Exception as error:  # whatever a compiler may raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"torch.compile: got {reason!r}, expected a kernel; going on without", stacklevel=2)
                self._call = self._plain
        return self._plain(*args, **kwargs)
