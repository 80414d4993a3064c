"""Add-on weights in files: what is refused, and that nothing is believed that the weights do not bear out."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from reuse_models.reusevit.addon import Addon, AddonShape, load_addon, save_addon
from reuse_models.reusevit.gate import Features

SHAPE = AddonShape(width=16, num_layers=3, decision_hidden=8, restoration_rank=4, numbers="log")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_addon(Addon(SHAPE), tmp_path / "addon.safetensors")
    return tmp_path / "addon.safetensors"


def test_what_is_saved_is_loaded_and_can_be_trained(saved: Path) -> None:
    torch.manual_seed(0)
    expected, loaded = Addon(SHAPE), load_addon(saved)
    saved.unlink()
    assert loaded.shape == SHAPE
    for name, weight in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert all(weight.requires_grad and weight.device.type == "cpu" for weight in loaded.parameters())
    assert not any(buffer.is_meta for buffer in loaded.buffers())


def test_decisions_beside_a_tower_of_sixteen_bits_tell_similarities_near_one_apart() -> None:
    torch.manual_seed(0)
    addon = Addon(SHAPE).beside(torch.zeros(1, dtype=torch.bfloat16))
    assert addon.restoration(0).down_QD.dtype == torch.bfloat16
    torch.manual_seed(0)
    for own, stored in zip(addon.decisions.parameters(), Addon(SHAPE).decisions.parameters(), strict=True):
        assert torch.equal(own, stored)  # not rounded on the way
    similarity_XA = torch.tensor([[0.9991, 0.9992]])
    assert similarity_XA.bfloat16().unique().numel() == 1
    half = torch.full((1, 2), 0.5, dtype=torch.bfloat16)
    logits_XA2 = addon.decisions[0](Features(half, similarity_XA, half, kind=0))
    assert logits_XA2[0, 0, 0] != logits_XA2[0, 1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"width": 2**40},
        {"width": 32},
        {"width": 2.5},
        {"width": "16"},
        {"num_layers": 10**9},
        {"restoration_rank": None},
        {"numbers": ["log"]},
        {"more": 1},
    ],
)
def test_a_shape_that_the_weights_do_not_have_is_refused_and_takes_no_memory(
    saved: Path, change: dict[str, Any]
) -> None:
    note = saved.with_suffix(".json")
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"^add-on weights .*: got .*, expected .*; ") as raised:
        load_addon(saved)
    assert "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17, "more than 128 MiB"


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{"])
def test_a_note_that_is_none_is_refused(saved: Path, text: str) -> None:
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"^add-on weights .*: got .*, expected the shape that training writes; "):
        load_addon(saved)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    addon = Addon(SHAPE)
    with torch.no_grad():
        next(addon.parameters()).view(-1)[3] = torch.nan
    save_addon(addon, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"got values that are no numbers, expected "):
        load_addon(tmp_path / "x.safetensors")
