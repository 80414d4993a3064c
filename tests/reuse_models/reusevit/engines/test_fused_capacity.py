"""Triton's kernels, in its interpreter where there is no GPU: equal to the compacted engine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reuse_models.method import Chunk
from reuse_models.reusevit.addon import Addon, addon_shape
from reuse_models.reusevit.engines import fused_capacity
from reuse_models.reusevit.engines.fused_capacity import FusedCapacity
from reuse_models.reusevit.gate import ForcedGate, Gate
from reuse_models.reusevit.method import ReuseVit, ReuseVitConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from tests.reuse_models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[4]
LENGTHS = (6, 1, 8)
CUTS = (3, 5)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FUSED_FAMILIES = [name for name, shape in FAMILIES.items() if shape.rope_theta is None]


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter takes any type; equal means more in 32 bits."""
    monkeypatch.setattr(fused_capacity, "HALVES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(fused_capacity, "CHOICE_TOKENS", 16)  # fewer programs: the interpreter is slow
    with torch.inference_mode():
        yield


def small(family: str) -> VitShape:
    """As small as kernels can take it: the interpreter is slow."""
    return dataclasses.replace(FAMILIES[family], image_px=24, num_layers=3)


def addon_of(shape: VitShape, numbers: Any = "log", rank: int | None = None) -> Addon:
    torch.manual_seed(2)
    addon = Addon(dataclasses.replace(addon_shape(shape, restoration_rank=rank), numbers=numbers))
    for weight in addon.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    return addon.eval().requires_grad_(False).to(DEVICE)


def both(shape: VitShape, gate: Gate | None, addon: Addon, **config: Any) -> tuple[ReuseVit, ReuseVit]:
    """Return the method on the compacted engine, and on the kernels."""
    vit = Vit.random(shape, seed=1).to(DEVICE)
    methods = [
        ReuseVit(ReuseVitConfig(inference=inference, **config), vit, addon, gate)
        for inference in ("compacted", "fixed")
    ]
    compacted, fused = methods
    assert fused.fixed is not None
    assert fused_capacity.can_fuse(vit, fused.fixed.policy)
    fused.fixed = FusedCapacity(vit, fused.fixed.policy)
    fused.scheduler = dataclasses.replace(fused.scheduler, one_size=True)
    return compacted, fused


def streams(shape: VitShape, lengths: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    pixels, codec = [], []
    for length in lengths:
        still = torch.randn(3, shape.image_px, shape.image_px, generator=generator)
        moving = 0.3 * torch.randn(length, 3, shape.image_px, shape.image_px, generator=generator)
        side = shape.patches_per_side
        pixels.append((still + moving).to(DEVICE))
        codec.append(torch.randint(0, 7, (length, 4, side, side), generator=generator).float())
    return pixels, codec


def encode(
    method: ReuseVit, pixels: list[Tensor], codec: list[Tensor], cuts: tuple[int, ...] = CUTS
) -> tuple[Tensor, Tensor]:
    """Return embeddings and reuse of all frames, stream after stream."""
    memory, start = method.start(len(pixels)), 0
    parts = []
    for size in cuts:
        cut = slice(start, start + size)
        ended = tuple(start + size >= len(x) for x in pixels)
        parts.append(method.encode(Chunk(tuple(x[cut] for x in pixels), tuple(x[cut] for x in codec), ended), memory))
        start += size
    each = range(len(pixels))
    embeddings = torch.cat([part.embeddings[stream] for stream in each for part in parts])
    return embeddings, torch.cat([part.reuse[stream] for stream in each for part in parts])


def assert_same(
    methods: tuple[ReuseVit, ReuseVit],
    shape: VitShape,
    lengths: tuple[int, ...] = LENGTHS,
    cuts: tuple[int, ...] = CUTS,
) -> None:
    pixels, codec = streams(shape, lengths)
    (expected, expected_reuse), (ours, reuse) = (encode(method, pixels, codec, cuts) for method in methods)
    assert 0.02 < reuse.float().mean() < 0.98
    assert torch.equal(reuse, expected_reuse)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FUSED_FAMILIES)
def test_a_trained_gate_decides_and_restores_alike(family: str) -> None:
    shape = small(family)
    assert_same(both(shape, None, addon_of(shape)), shape)


@pytest.mark.parametrize(("rate", "rank"), [(0.3, None), (0.9, 0)])
def test_a_forced_rate_is_the_same_with_restoration_and_without(rate: float, rank: int | None) -> None:
    shape = small("dinov2_with_registers")
    assert_same(both(shape, ForcedGate(rate, "random", shape), addon_of(shape, "plain", rank)), shape)


def test_too_few_rows_are_seen_and_what_was_overwritten_comes_back() -> None:
    """Dense frames of new GOPs among the groups, too."""
    shape = small("clip")
    compacted, fused = both(shape, ForcedGate(0.5, "random", shape), addon_of(shape), refresh=4)
    assert fused.fixed is not None
    # As if nearly everything had been reused so far, whenever a call begins.
    fused.fixed.capacities.note([1, 1], 1000)
    assert_same((compacted, fused), shape, lengths=(8, 6), cuts=(2, 6))
    assert not any(rows < 50 for rows in fused.fixed.capacities.rows(100))


def test_reported_work_is_that_of_the_plain_steps_but_for_importance() -> None:
    shape = small("clip")
    _, fused = both(shape, ForcedGate(0.5, "random", shape), addon_of(shape))
    plain = ReuseVit(ReuseVitConfig(inference="fixed"), fused.vit, fused.addon, ForcedGate(0.5, "random", shape))
    pixels, codec = streams(shape, (5,))
    chunk = Chunk(tuple(pixels), tuple(codec), (True,))
    ours, theirs = (one.encode(chunk, one.start(1)).work[0].parts for one in (fused, plain))
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"importance"}:
        assert torch.equal(ours[name], theirs[name]), name
    assert torch.equal(ours["importance"] * shape.num_heads, theirs["importance"])


@pytest.mark.parametrize(
    ("changes", "serves"),
    [
        ({}, True),
        ({"reference_state": "grouped"}, False),
        ({"forced_rate": 0.5}, False),
    ],
)
def test_what_kernels_do_not_serve_is_left_to_plain_steps(changes: dict[str, Any], serves: bool) -> None:
    vit = Vit.random(small("clip"))
    method = ReuseVit(ReuseVitConfig(inference="fixed", **changes), vit, addon_of(vit.shape))
    assert method.fixed is not None
    assert fused_capacity.can_fuse(vit, method.fixed.policy) == serves
    assert not fused_capacity.can_fuse(Vit.random(FAMILIES["dinov3"]), method.fixed.policy)


@pytest.mark.parametrize(("prefix", "last"), [(1, 0), (0, 0), (5, 1)])
def test_kernels_compile_for_a_gpu_that_is_not_here(prefix: int, last: int) -> None:
    """What the interpreter lets pass and the compiler does not: globals, types that change in a loop."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.reuse_models.compile_kernels", str(prefix), str(last)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "name", ["openai/clip-vit-large-patch14", "google/siglip2-base-patch16-224", "facebook/dinov2-with-registers-small"]
)
def test_on_a_gpu_published_sizes_in_16_bits_stay_close_and_wait_for_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = dataclasses.replace(KNOWN_SHAPES[name], num_layers=4)
    gate, addon = ForcedGate(0.7, "random", shape), addon_of(shape)
    vit = Vit.random(shape, seed=1).to(DEVICE)
    exact = ReuseVit(ReuseVitConfig(inference="compacted"), vit, addon, gate)
    halves = addon_of(shape).bfloat16()
    method = ReuseVit(ReuseVitConfig(), Vit.random(shape, seed=1).to(DEVICE, torch.bfloat16), halves, gate)
    assert isinstance(method.fixed, FusedCapacity)
    group = method.fixed.group

    def guarded(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return group(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    pixels, codec = streams(shape, (9, 9, 6))
    expected, expected_reuse = encode(exact, pixels, codec)
    for turn in range(5):
        if turn == 4:
            monkeypatch.setattr(method.fixed, "group", guarded)
        ours, reuse = encode(method, [x.bfloat16() for x in pixels], codec)
        assert torch.equal(reuse, expected_reuse)
        assert torch.cosine_similarity(ours, expected, dim=-1).min() > 0.99
    assert method.fixed.records
