"""Small towers, clips and golden weights that the tests of the methods share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from reuse_models.method import Chunk, Encoded, Method
from reuse_models.reusevit.addon import Addon, addon_shape
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Towers this small are slower on several threads, much slower where the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clip_vit() -> Vit:
    """Three layers, 16 patches and CLS."""
    return Vit.random(
        VitShape(
            image_px=32,
            patch_px=8,
            width=32,
            num_heads=4,
            num_layers=3,
            mlp_width=64,
            embed_dim=24,
            has_cls=True,
        ),
        seed=5,
    )


@pytest.fixture
def siglip_vit() -> Vit:
    """Three layers, 16 patches, no CLS, pooling head."""
    return Vit.random(
        VitShape(
            image_px=32,
            patch_px=8,
            width=32,
            num_heads=4,
            num_layers=3,
            mlp_width=64,
            embed_dim=32,
            has_cls=False,
            has_projection=False,
            activation="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
        ),
        seed=6,
    )


@pytest.fixture(scope="module")
def addon(vit: Vit) -> Addon:
    """A random add-on of the module's own tower, in double precision."""
    torch.manual_seed(2)
    addon = Addon(addon_shape(vit.shape))
    with torch.no_grad():
        for weight in addon.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return addon.double().requires_grad_(False)


@pytest.fixture(params=["clip", "siglip"])
def any_vit(request: pytest.FixtureRequest, clip_vit: Vit, siglip_vit: Vit) -> Vit:
    return {"clip": clip_vit, "siglip": siglip_vit}[request.param]


@pytest.fixture
def ragged_clips() -> tuple[Tensor, ...]:
    """Three clips of 7, 2 and 5 frames that drift, so that some tokens change much and some little."""
    generator = torch.Generator().manual_seed(7)
    clips = []
    for num_frames in (7, 2, 5):
        frames = [torch.randn(3, 32, 32, generator=generator)]
        for _ in range(num_frames - 1):
            changed = torch.rand(1, 4, 4, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
            frames.append(frames[-1] + (changed**4) * torch.randn(3, 32, 32, generator=generator))
        clips.append(torch.stack(frames))
    return tuple(clips)


@pytest.fixture
def run() -> Callable[..., Encoded]:
    """Encode whole clips in one call, or in calls of `frames_per_call` frames joined again."""
    return _run


def _run(method: Method, clips: tuple[Tensor, ...], frames_per_call: int | None = None) -> Encoded:
    longest = max(len(clip) for clip in clips)
    size = frames_per_call or longest
    memory = method.start(len(clips))
    parts: list[Encoded] = []
    for start in range(0, longest, size):
        chunk = Chunk(
            pixels=tuple(clip[start : start + size] for clip in clips),
            codec=None,
            ended=tuple(start + size >= len(clip) for clip in clips),
        )
        parts.append(method.encode(chunk, memory))
        memory = parts[-1].memory
    if len(parts) == 1:
        return parts[0]
    works = []
    for stream in range(len(clips)):
        names = {name for part in parts for name in part.work[stream].parts}
        joined = {
            name: torch.cat([part.work[stream].parts[name] for part in parts if name in part.work[stream].parts])
            for name in names
        }
        works.append(type(parts[0].work[0])(joined))
    return Encoded(
        embeddings=tuple(torch.cat([part.embeddings[b] for part in parts]) for b in range(len(clips))),
        reuse=tuple(torch.cat([part.reuse[b] for part in parts]) for b in range(len(clips))),
        work=tuple(works),
        memory=memory,
    )


@pytest.fixture(scope="session")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden"


@pytest.fixture(scope="session")
def golden_vit(golden_dir: Path) -> Vit:
    """The small tower of the golden numbers."""
    config = CLIPVisionConfig(**json.loads((golden_dir / "clip_vision_config.json").read_text()))
    model = CLIPVisionModelWithProjection(config)
    state = load_file(golden_dir / "reference_state.safetensors")
    prefix = "model."
    expected = model.state_dict().keys()
    tower = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
    model.load_state_dict({name: weight for name, weight in tower.items() if name in expected})
    return from_hf(model.eval())


@pytest.fixture(scope="session")
def golden_pixels(golden_dir: Path) -> Tensor:
    """Thirteen frames."""
    return load_file(golden_dir / "train_forward.safetensors")["pixels"]
