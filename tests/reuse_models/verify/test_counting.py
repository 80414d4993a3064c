"""The counter against products whose cost is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.verify.counting import ExecutedFlops, UncountedProductError, is_product


def rand(*size: int) -> Tensor:
    return torch.rand(size)


M, K, N, B = 3, 5, 7, 2
PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "linear": (lambda: F.linear(rand(M, K), rand(N, K), rand(N)), 2 * M * K * N),
    "batched linear": (lambda: F.linear(rand(B, M, K), rand(N, K), rand(N)), 2 * B * M * K * N),
    "matmul": (lambda: rand(B, M, K) @ rand(B, K, N), 2 * B * M * K * N),
    "einsum": (lambda: torch.einsum("bmk,bkn->bmn", rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "mm out": (lambda: torch.mm(rand(M, K), rand(K, N), out=rand(M, N)), 2 * M * K * N),
    "bmm out": (lambda: torch.bmm(rand(B, M, K), rand(B, K, N), out=rand(B, M, N)), 2 * B * M * K * N),
    "addmm out": (lambda: torch.addmm(rand(N), rand(M, K), rand(K, N), out=rand(M, N)), 2 * M * K * N),
    "addmm in place": (lambda: rand(M, N).addmm_(rand(M, K), rand(K, N)), 2 * M * K * N),
    "baddbmm": (lambda: torch.baddbmm(rand(B, M, N), rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "baddbmm in place": (lambda: rand(B, M, N).baddbmm_(rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "addbmm": (lambda: torch.addbmm(rand(M, N), rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "addbmm in place": (lambda: rand(M, N).addbmm_(rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "activation fused": (
        lambda: torch.ops.aten._addmm_activation(rand(N), rand(M, K), rand(K, N), use_gelu=True),
        2 * M * K * N,
    ),
    "matrix times vector": (lambda: rand(M, K) @ rand(K), 2 * M * K),
    "addmv in place": (lambda: rand(M).addmv_(rand(M, K), rand(K)), 2 * M * K),
    "dot": (lambda: rand(K) @ rand(K), 2 * K),
    "addr": (lambda: torch.addr(rand(M, N), rand(M), rand(N)), 2 * M * N),
    "attention": (
        lambda: F.scaled_dot_product_attention(rand(B, 4, M, 8), rand(B, 4, N, 8), rand(B, 4, N, 8)),
        2 * 2 * B * 4 * M * N * 8,
    ),
    "masked attention": (
        lambda: F.scaled_dot_product_attention(
            rand(B, 4, M, 8), rand(B, 4, N, 8), rand(B, 4, N, 8), attn_mask=rand(M, N)
        ),
        2 * 2 * B * 4 * M * N * 8,
    ),
    "conv2d": (lambda: F.conv2d(rand(B, 3, 8, 8), rand(6, 3, 4, 4), stride=4), 2 * B * 4 * 6 * 3 * 16),
    "conv3d": (lambda: F.conv3d(rand(B, 3, 2, 4, 4), rand(6, 3, 1, 2, 2)), 2 * B * 2 * 9 * 6 * 3 * 4),
    "conv1d": (lambda: F.conv1d(rand(B, 4, 9), rand(5, 4, 1)), 2 * B * 9 * 5 * 4),
    "transposed conv": (
        lambda: F.conv_transpose3d(rand(B, 6, 2, 4, 4), rand(6, 3, 1, 2, 2), stride=(1, 2, 2)),
        2 * B * 32 * 6 * 3 * 4,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_product_is_counted(name: str, gradients: bool) -> None:
    product, flops = PRODUCTS[name]
    with torch.set_grad_enabled(gradients), ExecutedFlops() as executed:
        product()
    assert executed.total == flops


def test_inference_mode_is_counted_too() -> None:
    with torch.inference_mode(), ExecutedFlops() as executed:
        F.linear(rand(M, K), rand(N, K), rand(N))
        F.scaled_dot_product_attention(rand(B, 4, M, 8), rand(B, 4, N, 8), rand(B, 4, N, 8))
    assert executed.total == 2 * M * K * N + 4 * B * 4 * M * N * 8


def test_a_product_without_a_formula_is_refused() -> None:
    with pytest.raises(UncountedProductError, match=r"aten\._cdist_forward"), ExecutedFlops():
        torch.cdist(rand(M, K), rand(N, K))
    with pytest.raises(UncountedProductError, match="_euclidean_dist"), ExecutedFlops():
        torch.cdist(rand(40, K), rand(40, K))  # large enough to be done as a product
    with pytest.raises(UncountedProductError, match="linalg_"), ExecutedFlops():
        torch.linalg.inv(rand(M, M))
    with pytest.raises(UncountedProductError, match=r"lstm|mkldnn_rnn"), ExecutedFlops():
        torch.nn.LSTM(4, 4)(rand(2, 3, 4))


@pytest.mark.parametrize(
    "name",
    [
        "aten.sort",
        "aten.native_layer_norm",
        "aten.upsample_bilinear2d",
        "aten.mvlgamma",
        "aten.linalg_vector_norm",
        "aten._fused_sdp_choice",
    ],
)
def test_other_operators_are_not_taken_for_products(name: str) -> None:
    assert not is_product(name)


def test_counting_changes_nothing_and_ends_with_the_block() -> None:
    a, b = rand(M, K), rand(K, N)
    with ExecutedFlops() as executed:
        counted = a @ b
    assert torch.equal(counted, a @ b)
    assert executed.total == 2 * M * K * N
