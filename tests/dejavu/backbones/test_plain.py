"""A tower read without transformers is the one that transformers reads, or is left to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dejavu.backbones.load import _vision_tower
from dejavu.backbones.locate import EMBEDDED, locate
from dejavu.backbones.plain import read_tower

ROOT = Path(__file__).resolve().parents[3]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 48, "patch_size": 16}
TEXT = {**SIZES, "vocab_size": 8, "max_position_embeddings": 10}
MODELS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)),
    "clip vision": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "clip vision, projected": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24)),
    "clip with gelu": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION, hidden_act="gelu")),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "siglip vision": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_tower_is_that_of_transformers(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    MODELS[kind]().to(dtype).save_pretrained(tmp_path)
    _expect_the_same(str(tmp_path))


def test_so_is_the_embedded_one() -> None:
    _expect_the_same(EMBEDDED)


def _expect_the_same(name: str) -> None:
    files = locate(name)
    plain, theirs = read_tower(files), _vision_tower(name, files)
    assert plain is not None
    assert plain.shape == theirs.shape
    found, expected = plain.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for key, weight in found.items():
        assert weight.dtype == torch.float32
        # The query is the one product with a sum in it, whose order depends on where the weights lie in memory.
        tolerance = 1e-6 if key == "pool.query" else 0.0
        torch.testing.assert_close(weight, expected[key], atol=tolerance, rtol=0.0, msg=key)
    assert not any(weight.requires_grad for weight in plain.parameters())
    assert not plain.training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", "32"),
        ("hidden_size", 10**9),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 0),
        ("image_size", 64),
        ("hidden_act", "relu"),
        ("layer_norm_eps", float("nan")),
        ("num_channels", 1),
        ("model_type", "siglip_vision_model"),
    ],
)
def test_a_config_that_says_something_else_is_left_to_transformers(tmp_path: Path, field: str, value: Any) -> None:
    MODELS["clip"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"][field] = value
    if value is None:
        del config["vision_config"][field]
    path.write_text(json.dumps(config))
    assert read_tower(locate(str(tmp_path))) is None


def test_weights_that_lack_or_are_no_numbers_or_lie_in_several_files_are_left_to_transformers(tmp_path: Path) -> None:
    MODELS["clip"]().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    save_file({key: weight for key, weight in weights.items() if key != name}, path, {"format": "pt"})
    assert read_tower(locate(str(tmp_path))) is None
    save_file(weights | {name: torch.full_like(weights[name], torch.inf)}, path, {"format": "pt"})
    assert read_tower(locate(str(tmp_path))) is None
    save_file(weights, path, {"format": "pt"})
    assert read_tower(locate(str(tmp_path))) is not None
    path.rename(tmp_path / "model-00001-of-00001.safetensors")
    assert read_tower(locate(str(tmp_path))) is None


@pytest.mark.slow
def test_a_worker_that_encodes_does_not_import_transformers() -> None:
    code = (
        "import sys, dejavu.stages.embed\n"
        "from dejavu.backbones.load import load_backbone\n"
        "load_backbone()\n"
        "print({'transformers', 'sympy', 'mlflow', 'pandas'} & sys.modules.keys())"
    )
    variables = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "set()"
