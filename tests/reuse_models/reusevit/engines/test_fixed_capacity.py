"""The engine for GPUs on a CPU: equal to the compacted one, and never waiting for the host inside a pass."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reuse_models.flops import flops_per_frame
from reuse_models.method import Chunk
from reuse_models.reusevit.addon import Addon, ReusePolicy, addon_shape
from reuse_models.reusevit.engines.fixed_capacity import FixedCapacity, FixedRun
from reuse_models.reusevit.engines.token_memory import ENGINE_STATES, EngineState
from reuse_models.reusevit.gate import ForcedGate, Gate, HardGate
from reuse_models.reusevit.method import INFERENCES, Inference, ReuseVit, ReuseVitConfig
from reuse_models.reusevit.reference import Pass, plan_of
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops

SHAPE = VitShape(image_px=48, patch_px=8, width=32, num_heads=2, num_layers=4, mlp_width=64, embed_dim=16, has_cls=True)
LENGTHS = (19, 1, 12, 7, 22)
CUTS = (3, 9, 1, 10)


@pytest.fixture(scope="module")
def vit() -> Vit:
    return Vit.random(SHAPE, seed=1).double()


def forced(rate: float, choice: Any = "similar") -> ForcedGate:
    return ForcedGate(rate, choice, SHAPE)


def streams(lengths: tuple[int, ...] = LENGTHS) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    pixels, codec = [], []
    for length in lengths:
        still = torch.randn(3, 48, 48, generator=generator).double()
        pixels.append(still + 0.3 * torch.randn(length, 3, 48, 48, generator=generator))
        codec.append(torch.randint(0, 7, (length, 4, 6, 6), generator=generator).double())
    return pixels, codec


def encode(method: ReuseVit, pixels: list[Tensor], codec: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return embeddings and reuse of all frames, stream after stream."""
    memory, start = method.start(len(pixels)), 0
    parts = []
    for size in CUTS:
        cut = slice(start, start + size)
        ended = tuple(start + size >= len(x) for x in pixels)
        parts.append(method.encode(Chunk(tuple(x[cut] for x in pixels), tuple(x[cut] for x in codec), ended), memory))
        start += size
    each = range(len(pixels))
    embeddings = torch.cat([part.embeddings[stream] for stream in each for part in parts])
    return embeddings, torch.cat([part.reuse[stream] for stream in each for part in parts])


def fixed_of(method: ReuseVit) -> FixedCapacity:
    assert isinstance(method.fixed, FixedCapacity)
    return method.fixed


def assert_same(config: ReuseVitConfig, vit: Vit, addon: Addon, gate: Gate | None) -> ReuseVit:
    pixels, codec = streams()
    both = [ReuseVit(with_inference(config, inference), vit, addon, gate) for inference in ("compacted", "fixed")]
    (expected, expected_reuse), (embeddings, reuse) = (encode(method, pixels, codec) for method in both)
    assert torch.equal(reuse, expected_reuse)
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=1e-6)
    return both[1]


def with_inference(config: ReuseVitConfig, inference: Any) -> ReuseVitConfig:
    fields = {name: getattr(config, name) for name in config.__slots__}
    return ReuseVitConfig(**{**fields, "inference": inference})


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
@pytest.mark.parametrize(("rate", "choice"), [(0.0, "random"), (0.3, "similar"), (0.9, "random"), (1.0, "similar")])
def test_it_equals_compacted_inference(
    vit: Vit, addon: Addon, reference_state: EngineState, rate: float, choice: str
) -> None:
    method = assert_same(ReuseVitConfig(reference_state=reference_state), vit, addon, forced(rate, choice))
    given = fixed_of(method).capacities.rows(1000)
    computed = 1 - round(rate * SHAPE.num_tokens) / SHAPE.num_tokens
    assert all(computed <= rows / 1000 <= max(1.2 * computed + 0.01, 0.05) for rows in given)


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
def test_decisions_feed_back_alike(vit: Vit, addon: Addon, reference_state: EngineState, bias: float) -> None:
    assert_same(ReuseVitConfig(reference_state=reference_state, decision_bias=bias), vit, addon, None)


def test_gops_that_end_are_the_same(vit: Vit, addon: Addon) -> None:
    assert_same(ReuseVitConfig(refresh=6), vit, addon, None)
    assert_same(ReuseVitConfig(refresh=5, reference_state="grouped"), vit, addon, None)


def test_an_addon_without_restoration_is_the_same(vit: Vit) -> None:
    assert_same(ReuseVitConfig(), vit, Addon(addon_shape(SHAPE, restoration_rank=0)).double(), forced(0.6))


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_too_few_rows_are_seen_and_the_call_is_done_again(
    vit: Vit, addon: Addon, reference_state: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, codec = streams((9, 12))
    chunk = Chunk(tuple(pixels), tuple(codec), (True, True))
    compacted, method = (
        ReuseVit(ReuseVitConfig(reference_state=reference_state, inference=inference), vit, addon, forced(0.5))
        for inference in INFERENCES[1:]
    )
    fixed, passes = fixed_of(method), 0
    group = fixed.group

    def counted(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return group(*arguments)

    monkeypatch.setattr(fixed, "group", counted)
    # As if nearly everything had been reused so far.
    fixed.capacities.note([4, 200, 4], 1000)
    found, expected = (one.encode(chunk, one.start(2)) for one in (method, compacted))
    assert passes == 2 * 3
    for stream in range(2):
        assert torch.equal(found.reuse[stream], expected.reuse[stream])
        torch.testing.assert_close(found.embeddings[stream], expected.embeddings[stream], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_sixteen_bits_stay_close(reference_state: EngineState, vit: Vit, addon: Addon) -> None:
    """The same tokens are computed, since random masks do not round."""
    pixels, codec = streams()
    exact = encode(
        ReuseVit(ReuseVitConfig(reference_state=reference_state), vit, addon, forced(0.7, "random")), pixels, codec
    )
    half_vit, half_addon = Vit.random(SHAPE, seed=1).bfloat16(), Addon(addon.shape).bfloat16()
    half_addon.load_state_dict(addon.state_dict())
    config = ReuseVitConfig(reference_state=reference_state, inference="fixed")
    half = encode(ReuseVit(config, half_vit, half_addon, forced(0.7, "random")), pixels, codec)
    assert torch.equal(half[1], exact[1])
    assert torch.cosine_similarity(half[0], exact[0], dim=-1).min() > 0.99


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_reported_work_is_what_is_executed_padding_included(reference_state: EngineState) -> None:
    shape = VitShape(
        image_px=96, patch_px=16, width=128, num_heads=2, num_layers=4, mlp_width=512, embed_dim=64, has_cls=True
    )
    vit = Vit.random(shape, seed=1)
    method = ReuseVitConfig(forced_rate=0.8, refresh=8, reference_state=reference_state, inference="fixed").build(vit)
    generator = torch.Generator().manual_seed(0)
    pixels = tuple(torch.randn(length, 3, 96, 96, generator=generator) for length in (11, 6))
    codec = tuple(torch.rand(length, 4, 6, 6, generator=generator) for length in (11, 6))
    reductions = []
    for turn in range(3):
        if turn == 2:  # as if everything had been reused so far
            fixed_of(method).capacities.forget()
            fixed_of(method).capacities.note([1, 1, 1], 1000)
        with ExecutedFlops() as executed:
            encoded = method.encode(Chunk(pixels, codec, (True, True)), method.start(2))
        counted = sum(float(flops_per_frame(shape, work).sum()) for work in encoded.work)
        assert counted == pytest.approx(executed.total, rel=0.01)
        reductions.append(counted)
    # At first every row is given; in the end too few are, and what is undone counts as well.
    assert reductions[1] < 0.75 * reductions[0]
    assert reductions[2] > 1.2 * reductions[0]


class NoQuestions(TorchDispatchMode):
    """Fails where the host would have to wait for a value on the device."""

    ASKING = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "equal", "is_nonzero", "argwhere")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        assert not any(word in name for word in self.ASKING), func
        if name.startswith(("index", "_index")):
            indices = [x for arg in args if isinstance(arg, list | tuple) for x in arg if isinstance(x, Tensor)]
            assert all(index.dtype not in {torch.bool, torch.uint8} for index in indices), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gate", ["decisions", "random", "similar"])
@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_a_pass_asks_the_host_nothing(
    vit: Vit, addon: Addon, reference_state: EngineState, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, codec = streams((10, 7))
    method = ReuseVit(
        ReuseVitConfig(reference_state=reference_state, inference="fixed"),
        vit,
        addon,
        None if gate == "decisions" else forced(0.5, gate),
    )
    fixed, passes = fixed_of(method), 0
    group = fixed.group

    def watched(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        with NoQuestions():  # type: ignore[no-untyped-call]
            return group(*arguments)

    monkeypatch.setattr(fixed, "group", watched)
    method.encode(Chunk(tuple(pixels), tuple(codec), (True, True)), method.start(2))
    assert passes == 3
    with pytest.raises(AssertionError, match="nonzero"), NoQuestions():  # type: ignore[no-untyped-call]
        ReuseVit(ReuseVitConfig(), vit, addon).encode(Chunk(tuple(pixels), tuple(codec), (True, True)), method.start(2))


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_steps_have_shapes_that_no_value_decides(reference_state: EngineState) -> None:
    """Tensors without values run through all steps: what depends on one raises there."""
    meta = torch.device("meta")
    with meta:
        vit, addon = Vit(SHAPE), Addon(addon_shape(SHAPE))
    engine = FixedCapacity(vit, ReusePolicy(addon, HardGate(addon.decisions), reference_state))
    plan = plan_of((4, 3), SHAPE.num_tokens, meta)
    anchors, places = engine.take(2, 2)
    groups = Pass((0, 1), (4, 3), places.pixels_F3HW, places.history_F4TPP, [])
    run = FixedRun(engine, anchors, places, plan, groups)
    with torch.no_grad():
        run.enter()
        for boundary in range(SHAPE.num_layers - 1):
            run.layer(boundary, 64)
        run.leave()
    assert run.places.embeddings_FE.shape == (8, SHAPE.embed_dim)
    with pytest.raises(NotImplementedError):  # what a step that asked the host would have met above
        run.base_X.nonzero()


def test_chains_of_small_operators_can_be_compiled_whole(vit: Vit, addon: Addon) -> None:
    method = ReuseVit(ReuseVitConfig(inference="fixed"), vit, addon)
    fixed, compiled = fixed_of(method), []
    for name in ("similarities", "nearest", "addresses", "hidden"):
        plain = getattr(fixed, name)._plain
        setattr(fixed, name, torch.compile(plain, backend="eager", fullgraph=True))
        compiled.append(name)
    expected = ReuseVit(ReuseVitConfig(), vit, addon)
    pixels, codec = streams((6,))
    ours, theirs = (
        one.encode(Chunk(tuple(pixels), tuple(codec), (True,)), one.start(1)).embeddings[0]
        for one in (method, expected)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_memory_that_nobody_uses_is_used_again(vit: Vit, addon: Addon) -> None:
    """Recordings know addresses."""
    method = ReuseVit(ReuseVitConfig(inference="fixed"), vit, addon)
    first, second = method.start(2), method.start(2)
    assert first.anchors[0].norm_BN.data_ptr() != second.anchors[0].norm_BN.data_ptr()
    address, places = first.anchors[0].norm_BN.data_ptr(), first.fixed_places
    del first
    gc.collect()
    third = method.start(2)
    assert third.anchors[0].norm_BN.data_ptr() == address
    assert third.fixed_places is places
    pixels, codec = streams()
    again = encode(method, pixels, codec)
    torch.testing.assert_close(encode(method, pixels, codec)[0], again[0], atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_on_a_gpu_a_replayed_pass_waits_for_nothing(
    addon: Addon, reference_state: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, codec = streams((9, 9))
    chunk = Chunk(tuple(pixels), tuple(codec), (True, True))
    config, gate = ReuseVitConfig(reference_state=reference_state), forced(0.7, "random")
    expected = ReuseVit(config, Vit.random(SHAPE, seed=1).double(), addon, gate)
    on_gpu = Addon(addon.shape).double()
    on_gpu.load_state_dict(addon.state_dict())
    method = ReuseVit(config, Vit.random(SHAPE, seed=1).double().cuda(), on_gpu.cuda(), gate)
    for _ in range(5):
        method.encode(chunk, method.start(2))
    fixed = fixed_of(method)
    group = fixed.group

    def guarded(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return group(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(fixed, "group", guarded)
    ours, theirs = (one.encode(chunk, one.start(2)) for one in (method, expected))
    memory = method.start(2)
    assert memory.fixed_places is not None
    assert memory.fixed_places.recorded.records
    for stream in range(2):
        assert torch.equal(ours.reuse[stream].cpu(), theirs.reuse[stream])
        torch.testing.assert_close(ours.embeddings[stream].cpu(), theirs.embeddings[stream], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("inference", "is_fixed"), [("auto", False), ("compacted", False), ("fixed", True)])
def test_a_cpu_runs_what_is_fast_there_unless_told_otherwise(
    vit: Vit, addon: Addon, inference: Inference, is_fixed: bool
) -> None:
    assert (ReuseVit(ReuseVitConfig(inference=inference), vit, addon).fixed is not None) == is_fixed
    with pytest.raises(ValueError, match="inference: got 'other'"):
        ReuseVitConfig(inference="other")  # type: ignore[arg-type]
