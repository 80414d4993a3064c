"""The benchmark on a tiny tower: its rows, its table, its refusals."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from reuse_models.tower.shape import VitShape

JOBS = Path(__file__).resolve().parents[3] / "jobs"
TINY = VitShape(
    image_px=64, patch_px=16, width=64, num_heads=2, num_layers=3, mlp_width=128, embed_dim=32, has_cls=True
)
COLUMNS = {
    "backbone", "method", "device", "dtype", "streams", "reuse_rate", "achieved_reuse_rate", "frames_per_s",
    "dense_frames_per_s", "speedup", "flops_reduction", "efficiency", "peak_memory_mb", "state_bytes_per_stream",
}  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(JOBS))
    spec = importlib.util.spec_from_file_location("speed_job", JOBS / "benchmarks" / "speed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "speed_job", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "KNOWN_SHAPES", {"tiny": TINY})
    return module


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_every_setting_gives_a_row(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out" / "rows.json", tmp_path / "plot.png"
    arguments = ["--backbone", "tiny", "--random-weights", "--method", "reusevit", "eventful", "cmc", "diffrate"]
    arguments += ["--reuse-rates", "0.5", "0.9", "--streams", "1", "3", "--rounds", "2", "--threads", "1"]
    arguments += ["--compile-mode", "no"]
    assert benchmark.main([*arguments, "--json", str(out), "--plot", str(picture)]) == 0
    rows = json.loads(out.read_text())
    assert len(rows) == 12  # DiffRate cannot save half of this tower
    assert "diffrate at 50% is left out" in capsys.readouterr().out
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["speedup"] > 0
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["flops_reduction"])
    forced = [row for row in rows if row["method"] == "reusevit"]
    for row in forced:
        assert row["achieved_reuse_rate"] == pytest.approx(row["reuse_rate"], abs=0.04)
        assert row["state_bytes_per_stream"] > 0
    assert forced[1]["flops_reduction"] > forced[0]["flops_reduction"] > 1
    assert picture.stat().st_size > 1000


def test_frames_may_be_smaller_than_the_towers_own(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--backbone", "tiny", "--random-weights", "--reuse-rates", "0.5", "--streams", "1", "--rounds", "1"]
    arguments += ["--compile-mode", "no"]
    seen = []
    made = benchmark.make_chunks
    benchmark.make_chunks = lambda vit, *more: seen.append(vit.shape.image_px) or made(vit, *more)
    assert benchmark.main([*arguments, "--image-px", "32"]) == 0
    assert seen == [32]
    assert "1 streams: round 1 of 1" in capsys.readouterr().err
    assert benchmark.main([*arguments, "--image-px", "40"]) == benchmark.MODEL_FAILURE
    assert "40" in capsys.readouterr().err.splitlines()[-1]


def test_the_table_says_where_reuse_is_slower(benchmark: ModuleType, tmp_path: Path) -> None:
    """A tower of this size is all overhead."""
    out = tmp_path / "rows.json"
    arguments = ["--backbone", "tiny", "--random-weights", "--reuse-rates", "0", "--rounds", "1", "--json", str(out)]
    assert benchmark.main([*arguments, "--compile-mode", "no"]) == 0
    (row,) = json.loads(out.read_text())
    table = benchmark.break_even_table([row])
    assert ("slower than dense: 8 streams at 0% reuse" in table) == (row["speedup"] < 1)


def test_the_strongest_dense_tower_is_compiled_as_well(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(tower: object, **_: object) -> Callable[[torch.Tensor], None]:
        return lambda pixels_B3HW: None  # faster than any

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(benchmark, "_has_compiler", lambda: True)
    out = tmp_path / "rows.json"
    arguments = ["--backbone", "tiny", "--random-weights", "--reuse-rates", "0.5", "--rounds", "1", "--json", str(out)]
    assert benchmark.main(arguments) == 0
    (row,) = json.loads(out.read_text())
    assert row["dense_path"].endswith(" at once, compiled")
    assert any(precision in row["dense_path"] for precision in ("float32", "bfloat16"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--backbone", "tiny", "--random-weights", "--reuse-rates", "1.5"], "reuse rate: got 1.5"),
        (["--backbone", "other", "--random-weights"], "expected one whose sizes are known: tiny"),
        (["--backbone", "tiny"], "expected a local directory"),
        (["--backbone", "tiny", "--random-weights", "--streams", "0"], "streams: got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert benchmark.main(arguments) == 2
    assert complaint in capsys.readouterr().err
