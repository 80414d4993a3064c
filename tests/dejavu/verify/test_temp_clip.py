from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dejavu.verify.temp_clip import check_temp_clip


def test_the_head_equals_the_golden_one(shared_dir: Path) -> None:
    golden = shared_dir / "golden"
    rows = check_temp_clip(golden / "tempclip_state.safetensors", golden / "tempclip_forward.safetensors")
    assert [row.name for row in rows] == [
        "temp_clip logits",
        "temp_clip span",
        "temp_clip frame attention",
        "temp_clip Gaussian",
    ]
    assert {row.name: row.largest_error for row in rows if row.state != "ok"} == {}


def test_another_weight_gives_other_numbers(shared_dir: Path, tmp_path: Path) -> None:
    golden = shared_dir / "golden"
    state = load_file(golden / "tempclip_state.safetensors")
    state["module.satt_pool_frame_gs.2.weight"] = -state["module.satt_pool_frame_gs.2.weight"] * 4
    save_file(state, tmp_path / "state.safetensors")
    rows = check_temp_clip(tmp_path / "state.safetensors", golden / "tempclip_forward.safetensors")
    assert rows[1].state == "failed"


def test_a_checkpoint_without_a_weight_is_named(shared_dir: Path, tmp_path: Path) -> None:
    golden = shared_dir / "golden"
    state = load_file(golden / "tempclip_state.safetensors")
    del state["module.vpos_proj.1.bias"]
    save_file(state, tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match=r"got no vpos_proj\.1\.bias"):
        check_temp_clip(tmp_path / "state.safetensors", golden / "tempclip_forward.safetensors")


def test_a_pickled_checkpoint_reads_the_same(shared_dir: Path, tmp_path: Path) -> None:
    """The published file is a bare state dict; nothing in it is executed."""
    golden = shared_dir / "golden"
    torch.save(load_file(golden / "tempclip_state.safetensors"), tmp_path / "best_model.pth")
    shutil.copy(golden / "tempclip_forward.safetensors", tmp_path / "forward.safetensors")
    rows = check_temp_clip(tmp_path / "best_model.pth", tmp_path / "forward.safetensors")
    assert {row.state for row in rows} == {"ok"}
