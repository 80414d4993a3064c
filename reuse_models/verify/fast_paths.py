"""Every fast path that this machine offers against the plain one, on a small random tower.

The plain path computes every token of every frame on the CPU, one operator after the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from reuse_models.method import Chunk
from reuse_models.reusevit.addon import Addon, ReusePolicy, addon_shape
from reuse_models.reusevit.codec_net import CODEC_CHANNELS, CODEC_STEPS, codec_history
from reuse_models.reusevit.engines.masked import Clips, masked_forward
from reuse_models.reusevit.engines.token_memory import ENGINE_STATES, EngineState
from reuse_models.reusevit.frame_order import schedule
from reuse_models.reusevit.gate import ForcedGate
from reuse_models.reusevit.method import Inference, ReuseVit, ReuseVitConfig
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.verify.golden import Row, compare

SHAPE = VitShape(
    image_px=96, patch_px=16, width=128, num_heads=2, num_layers=4, mlp_width=512, embed_dim=64, has_cls=True
)
RATES = (0.3, 0.8)
"""Forced, with random masks: a path may round differently without choosing differently."""
LENGTHS = (10, 7)
TOLERANCE = 1e-3
"""Of float32 and of embeddings scaled to unit length."""
HALF_TOLERANCE = 5e-2
TIMES = 5
"""A GPU learns how many rows to give, records, and replays: the path that later calls take is the last one's."""
FILE = "(random tower)"


@torch.no_grad()
def compare_fast_paths() -> Iterable[Row]:
    """Yield a row for each path; a path that the machine lacks is not listed."""
    for reference_state in ENGINE_STATES:
        plain = _plain(reference_state)
        ours = _ours(reference_state, torch.device("cpu"), torch.float32)
        yield _row(f"compacted inference, {reference_state}", ours, plain, TOLERANCE)
        if torch.cuda.is_available():
            yield from _on_gpu(reference_state, plain)
    if torch.get_num_threads() > 1:
        ours = _ours("anchor", torch.device("cpu"), torch.float32, cores=len(LENGTHS))
        yield _row("streams shared among cores", ours, _plain("anchor"), TOLERANCE)


def _on_gpu(reference_state: EngineState, plain: Tensor) -> Iterable[Row]:
    device = torch.device("cuda")
    for inference in ("compacted", "fixed"):
        for dtype, tolerance in ((torch.float32, TOLERANCE), (torch.bfloat16, HALF_TOLERANCE)):
            ours = _ours(reference_state, device, dtype, inference=inference)
            name = f"cuda {str(dtype).removeprefix('torch.')} {inference}, {reference_state}"
            yield _row(name, ours, plain, tolerance)


def _row(name: str, ours: Tensor, plain: Tensor, tolerance: float) -> Row:
    return compare(f"fast path: {name}", FILE, ours, plain, tolerance)


def _world() -> tuple[Vit, Addon, list[Tensor], list[Tensor]]:
    vit = Vit.random(SHAPE, seed=0)
    generator = torch.Generator().manual_seed(0)
    addon = Addon(addon_shape(SHAPE))
    for weight in addon.parameters():
        weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    side = SHAPE.patches_per_side
    pixels, codec = [], []
    for length in LENGTHS:
        still = torch.randn(3, SHAPE.image_px, SHAPE.image_px, generator=generator)
        pixels.append(still + 0.2 * torch.randn(length, *still.shape, generator=generator))
        codec.append(torch.rand(length, CODEC_CHANNELS, side, side, generator=generator))
    return vit, addon, pixels, codec


def _plain(reference_state: EngineState) -> Tensor:
    vit, addon, pixels, codec = _world()
    embeddings = []
    for rate in RATES:
        # One stream at a time would number it 0; the forced gate draws by stream.
        for stream, (pixels_F3HW, codec_F4PP) in enumerate(zip(pixels, codec, strict=True)):
            order = schedule(len(pixels_F3HW))
            frames = [step.frame for step in order]
            before = codec_F4PP.new_zeros(CODEC_STEPS - 1, *codec_F4PP.shape[1:])
            scores = addon.codec_net(codec_history(before, codec_F4PP))
            copies = stream + 1
            clips = Clips(
                pixels_F3HW[frames].expand(copies, -1, -1, -1, -1), scores[frames].expand(copies, -1, -1, -1), order
            )
            output = masked_forward(vit, ReusePolicy(addon, ForcedGate(rate, "random", SHAPE), reference_state), clips)
            embeddings.append(output.embeddings_CFE[stream][torch.tensor(frames).argsort()])
    return torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)


def _ours(
    reference_state: EngineState,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cores: int = 1,
    inference: Inference = "auto",
) -> Tensor:
    vit, addon, pixels, codec = _world()
    vit = vit.to(device, dtype)
    addon = addon.beside(vit.position)
    embeddings: list[Tensor] = []
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        for rate in RATES:
            config = ReuseVitConfig(reference_state=reference_state, inference=inference)
            method = ReuseVit(config, vit, addon, ForcedGate(rate, "random", SHAPE))
            chunk = Chunk(tuple(x.to(device, dtype) for x in pixels), tuple(codec), (True,) * len(pixels))
            for _ in range(1 if method.fixed is None else TIMES):
                encoded = method.encode(chunk, method.start(len(pixels)))
            embeddings += encoded.embeddings
    finally:
        torch.set_num_threads(before)
    return torch.nn.functional.normalize(torch.cat(embeddings).float().cpu(), dim=-1)
