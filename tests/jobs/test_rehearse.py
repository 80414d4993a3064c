"""The rehearsal: what it refuses, and one of a tower of three layers from drawn clips to the table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import rehearse
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dejavu.rehearsal.footage import WORDS
from dejavu.rehearsal.weights import write_weights
from reuse_models.tower.known_shapes import KNOWN_SHAPES

ROOT = Path(__file__).resolve().parents[2]
LARGE = "openai/clip-vit-large-patch14"


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Return the one line that these words are refused with."""
    assert rehearse.main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line.removeprefix("error: ")


def test_an_unknown_tower_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "--backbone", "openai/clip-vit-huge", "--results", tmp_path / "new")
    assert line.startswith("--backbone: got openai/clip-vit-huge, which is no directory, expected one of openai/")
    assert not (tmp_path / "new").exists()


def test_a_directory_without_a_tower_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(capsys, "--backbone", tmp_path / "empty", "--results", tmp_path / "new")
    assert "got a directory without config.json, expected one written by save_pretrained" in line


def test_a_tower_without_words_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=16)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "vision")
    capsys.readouterr()  # what was said while saving
    line = refused(capsys, "--backbone", tmp_path / "vision", "--results", tmp_path / "new")
    assert "without text tower or tokenizer, expected both, since NExT-QA asks in words" in line


def test_a_folder_that_holds_something_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(capsys, "--backbone", LARGE, "--results", tmp_path)
    assert line.startswith(f"--results: got {tmp_path}, which holds something, expected a new folder")


def test_a_disk_without_room_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    line = refused(capsys, "--backbone", LARGE, "--results", tmp_path / "new")
    # 24 layers of 12 * 1024 ** 2 weights and 12 of 12 * 768 ** 2, 4 bytes each, beside 2 GB.
    assert line.startswith(f"--results: got 1.0 GB free in {tmp_path}, expected 3.5 GB")


def test_what_is_given_after_two_dashes_replaces_our_own(tmp_path: Path) -> None:
    config = rehearse.RehearseConfig(backbone=LARGE, results=tmp_path)
    inputs = {f"--{name}": tmp_path / name for name in ("videos", "annotations", "backbone")}
    words = rehearse.pipeline_words(config, inputs, ["--sweep.density", "demo"])
    assert words.count("--sweep.density") == 1
    found = rehearse.parse(words)
    assert (found.recipe, found.sweep.density, found.sweep.chosen_per_method) == ("nextqa", "demo", 1)
    assert found.stages == rehearse.RECIPES["nextqa"][1].stages  # every one of them
    assert found.sweep.methods == rehearse.RECIPES["nextqa"][1].sweep.methods


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_tower_is_rehearsed_to_its_table(tmp_path: Path) -> None:
    shape = replace(KNOWN_SHAPES[LARGE], image_px=56, width=64, num_heads=4, num_layers=3, mlp_width=128, embed_dim=64)
    write_weights(shape, WORDS, tmp_path / "backbone")
    words = ["--backbone", tmp_path / "backbone", "--results", tmp_path / "results", "--machines", "1", "10"]
    words += ["--clips.num-train", "2", "--clips.num-val", "2", "--clips.num-test", "2", "--clips.min-s", "7"]
    words += ["--clips.max-s", "9", "--clips.width-px", "96", "--clips.height-px", "64", "--clips.fps", "8"]
    command = [sys.executable, ROOT / "jobs" / "rehearse.py", *words, "--num-cpus", "2"]
    command += ["--", "--sweep.methods", "tome", "diffrate", "reusevit"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    found = json.loads((tmp_path / "results" / "rehearsal.json").read_text())
    stages = found["stages"]
    assert set(stages) == {"transcode", "embed", "train", "schedules", "texts", "sweep", "measure", "score", "other"}
    for stage in ("transcode", "embed", "train", "schedules", "sweep", "measure"):
        one = stages[stage]
        assert one["seconds"] > one["fixed_s"] >= 0, stage
        assert one["whole"]["worker_h"] > 0, stage
        assert one["whole"]["hours"]["10"] <= one["whole"]["hours"]["1"], stage
    # A process that has loaded torch holds more than 100 MiB, driver and workers alike.
    assert min(stages["embed"]["driver"], stages["sweep"]["largest_worker"], stages["train"]["workers"]) > 100 * 2**20
    # Every frame of every clip is transcoded; on test clips, ToMe's one chosen setting is embedded.
    frames = {(step["stage"], step["step"], step["method"]): step["frames"] for step in found["steps"]}
    assert frames["transcode", "transcode", ""] == frames["embed", "encode", "original"] == 3 * (14 + 18)
    assert frames["embed", "encode", "tome"] == 14 + 18
    kinds = {(line["stage"], line["what"].split(" ")[0]) for line in found["work"]}
    assert {("train", step) for step in ("decode", "fit", "gather", "warm_up", "validate", "calibrate")} <= kinds
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(stages) + 1
    assert (tmp_path / "results" / "run" / "report.html").is_file()
