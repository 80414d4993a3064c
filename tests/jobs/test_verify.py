"""The command that proves an installation: what it checks, and that it fails when it should."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

JOBS = Path(__file__).resolve().parents[2] / "jobs"
NEEDED = ("clip_vision_config.json", "reference_state.safetensors", "train_forward.safetensors")


@pytest.fixture(scope="module")
def verify() -> ModuleType:
    sys.path.insert(0, str(JOBS))
    spec = importlib.util.spec_from_file_location("verify_job", JOBS / "verify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(shared_dir: Path, tmp_path: Path) -> Path:
    """Enough of the golden folder for the quick comparisons."""
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in (*NEEDED, "eventful.safetensors", "loss_50.safetensors", "flops_published.json"):
        shutil.copy(shared_dir / "golden" / name, folder / name)
        (folder / name).chmod(0o644)
    return folder


def run(verify: ModuleType, folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    out = folder.parent / "rows.json"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code = verify.main(["--golden", str(folder), "--json", str(out)])
    finally:
        torch.set_num_threads(before)
    rows = json.loads(out.read_text())
    assert all({"name", "file", "largest_error", "tolerance", "state"} <= row.keys() for row in rows)
    return code, {row["name"]: row for row in rows}


def test_what_is_there_is_checked_and_the_rest_named(verify: ModuleType, folder: Path) -> None:
    code, rows = run(verify, folder)
    assert code == 0
    assert rows["training forward image_embeds"]["state"] == "ok"
    assert rows["eventful reuse_map"]["state"] == "ok"
    assert rows["loss_50 loss"]["state"] == "ok"
    assert rows["published FLOPs large diffrate"]["state"] == "ok"
    assert rows["fast path: compacted inference, anchor"]["state"] == "ok"
    assert {rows[name]["state"] for name in ("cmc", "diffrate", "grouped inference", "codec grid", "nextgqa")} == {
        "absent"
    }


def test_a_changed_number_fails(verify: ModuleType, folder: Path) -> None:
    path = folder / "eventful.safetensors"
    tensors = load_file(path)
    tensors["image_embeds"][2, 1, 0] += 1e-3
    save_file(tensors, path)
    code, rows = run(verify, folder)
    assert code == 1
    assert rows["eventful embeds"]["state"] == "failed"
    assert rows["eventful embeds"]["largest_error"] == pytest.approx(1e-3, rel=0.1)
    assert rows["training forward image_embeds"]["state"] == "ok"


def test_a_number_that_is_none_fails(verify: ModuleType, folder: Path) -> None:
    path = folder / "eventful.safetensors"
    tensors = load_file(path)
    tensors["image_embeds"][1] = torch.nan
    save_file(tensors, path)
    code, rows = run(verify, folder)
    assert code == 1
    assert rows["eventful embeds"]["state"] == "failed"


@pytest.mark.parametrize("name", [*NEEDED, "flops_published.json"])
def test_an_unreadable_file_fails(verify: ModuleType, folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, rows = run(verify, folder)
    assert code == 1
    assert any(row["state"] == "failed" for row in rows.values())


def test_an_empty_folder_is_no_proof(verify: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "golden"
    empty.mkdir()
    code, rows = run(verify, empty)
    assert code == 1
    assert not [name for name, row in rows.items() if row["state"] == "ok" and not name.startswith("fast path")]
    assert "nothing to compare" in capsys.readouterr().out
    assert verify.main(["--golden", str(tmp_path / "none")]) == 1


def test_another_tower_is_read_from_the_files(verify: ModuleType, folder: Path) -> None:
    """Fewer frames in the file: sizes are the file's."""
    for name in ("eventful.safetensors", "train_forward.safetensors"):
        tensors = load_file(folder / name)
        if name.startswith("eventful"):
            tensors = {key: x[:3].contiguous() if x.ndim else x for key, x in tensors.items()}
        else:
            tensors["pixels"] = tensors["pixels"][:9].contiguous()
        save_file(tensors, folder / name)
    _, rows = run(verify, folder)
    assert rows["eventful embeds"]["state"] == "ok"
    assert rows["eventful reuse_map"]["state"] == "ok"
