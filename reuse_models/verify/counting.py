"""Counting the FLOPs of the operators that really run, to hold the formulas of `flops.py` against.

Built on torch's FlopCounterMode, which as it comes counts CPU attention, in-place products and matrix-vector products
as zero, and says nothing about a product it has never heard of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

aten = torch.ops.aten

Shape = tuple[int, ...]
Formula = Callable[..., int]
"""Takes the arguments of the operator with tensors replaced by their shapes, and out_shape."""


def _product(a_shape: Shape, b_shape: Shape, out_shape: Any = None, **_: Any) -> int:
    """Of matrices, batched or not, summed over the batch or not; of a matrix or a vector and a vector."""
    return 2 * math.prod(a_shape) * (b_shape[-1] if len(b_shape) > 1 else 1)


def _added_product(self_shape: Shape, a_shape: Shape, b_shape: Shape, out_shape: Any = None, **_: Any) -> int:
    return _product(a_shape, b_shape)


def _outer(self_shape: Shape, a_shape: Shape, b_shape: Shape, out_shape: Any = None, **_: Any) -> int:
    return 2 * math.prod(a_shape) * math.prod(b_shape)


def _attention(q_shape: Shape, k_shape: Shape, v_shape: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(q_shape, k_shape, v_shape))


FORMULAS: dict[Any, Formula] = {
    aten.addmm_: _added_product,
    aten._addmm_activation: _added_product,
    aten.baddbmm_: _added_product,
    aten.addbmm: _added_product,
    aten.addbmm_: _added_product,
    aten._int_mm: _product,
    aten.mv: _product,
    aten.addmv: _added_product,
    aten.addmv_: _added_product,
    aten.dot: _product,
    aten.vdot: _product,
    aten.addr: _outer,
    aten.addr_: _outer,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
}
"""Products that FlopCounterMode does not know. Composite operators (linear, matmul, einsum) reach it as their parts."""

PRODUCT_ENDINGS = ("mm", "mv", "dot", "matmul", "gemm", "linear", "einsum", "cdist", "bilinear", "trilinear")
PRODUCT_STARTS = ("conv", "attention", "lstm", "gru", "rnn", "euclidean", "linalg", "fft")
NO_PRODUCTS = ("linalg_vector_norm",)


class UncountedProductError(RuntimeError):
    """An operator that multiplies matrices ran, and no formula says what it costs."""


class ExecutedFlops:
    """Count FLOPs, 2 per multiply-accumulate, of every matrix product inside a `with` block.

    Source: torch.utils.flop_counter, with the formulas it lacks.
    """

    def __init__(self) -> None:
        self._counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        self._guard = _RefuseUncounted()  # type: ignore[no-untyped-call]

    @property
    def total(self) -> int:
        return int(self._counter.get_total_flops())

    def __enter__(self) -> ExecutedFlops:
        # The guard lies below the counter, so that it sees operators after the counter has taken composites apart.
        self._guard.__enter__()  # type: ignore[no-untyped-call]
        self._counter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counter.__exit__(kind, error, trace)
        self._guard.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]


class _RefuseUncounted(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        if packet not in flop_registry and packet not in FORMULAS and is_product(str(packet)):
            raise UncountedProductError(
                f"operator {packet}: got a matrix product without a formula, expected one in counting.FORMULAS; add it"
            )
        return func(*args, **(kwargs or {}))


def is_product(operator: str) -> bool:
    """Say whether an operator's name, such as `aten.addmm_`, is that of a matrix product."""
    name = operator.rpartition(".")[2].strip("_")
    return name not in NO_PRODUCTS and any(
        word.endswith(PRODUCT_ENDINGS) or word.startswith(PRODUCT_STARTS) for word in name.split("_")
    )
