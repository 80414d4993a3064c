"""Import of published checkpoints: what is taken, what is refused, and that nothing in a file runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import resource
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reuse_models.artifact.weights import VARIANTS, Variant, addon_from_state, read_checkpoint
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit


@pytest.fixture(scope="module")
def state(golden_dir: Path) -> dict[str, Tensor]:
    return load_file(golden_dir / "reference_state.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "published.ckpt"
    content = {f"net._orig_mod.{name}": weight for name, weight in state.items()}
    content |= {"orig_model.vision_model.embeddings.class_embedding": torch.zeros(3)}
    torch.save({"state_dict": content, "epoch": 4, "hyper_parameters": {"lr": 1e-3}}, path)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_gives_the_weights_of_the_golden_state(
    checkpoint: Path, state: dict[str, Tensor], golden_vit: Vit, variant: Variant
) -> None:
    read = addon_from_state(read_checkpoint(checkpoint), golden_vit.shape, variant)
    expected = addon_from_state(state, golden_vit.shape, variant)
    for name, weight in expected.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight)


def test_the_variants_differ_by_one_boundary(state: dict[str, Tensor], golden_vit: Vit) -> None:
    as_trained = addon_from_state(state, golden_vit.shape, "as_trained").state_dict()
    released = addon_from_state(state, golden_vit.shape, "released").state_dict()
    assert torch.equal(as_trained["decisions.0.enter.weight"], released["decisions.1.enter.weight"])
    assert not torch.equal(as_trained["decisions.0.enter.weight"], released["decisions.0.enter.weight"])
    assert torch.equal(as_trained["restorations.0.up_4DR"], released["restorations.0.up_4DR"])


class Trainer:
    """A class of whoever wrote the file."""


def test_classes_of_the_trainer_are_ignored(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "lightning.ckpt"
    trainer = Trainer()
    trainer.__dict__["settings"] = {"lr": 1e-3}
    weights = torch.nn.ParameterDict({"x": torch.ones(2, 3).t()}).state_dict()
    content = OrderedDict({"net.x": weights["x"], "net.half": torch.arange(3).bfloat16()})
    torch.save({"state_dict": content, "hyper_parameters": argparse.Namespace(a=1), "callbacks": [trainer]}, path)
    read = read_checkpoint(path)
    assert torch.equal(read["x"], torch.ones(3, 2))
    assert read["half"].tolist() == [0, 1, 2]


def test_the_dense_tower_beside_it_is_ignored(checkpoint: Path) -> None:
    assert not any(name.startswith("orig_model") for name in read_checkpoint(checkpoint))


def test_a_method_runs_on_it(checkpoint: Path, golden_vit: Vit) -> None:
    config = ReuseVitConfig(weights=str(checkpoint), variant="released", reference_state="grouped", refresh=8)
    assert config.setting == "published released grouped R=8"
    assert config.build(golden_vit).vit is golden_vit


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for size in (0, 10, 1000, len(whole) // 2, len(whole) - 30):
        checkpoint.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"checkpoint published\.ckpt: got"):
            read_checkpoint(checkpoint)


class Malicious:
    """Its pickle asks the reader to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


class Evaluating:
    """Its pickle asks the reader to evaluate an expression."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"__import__('os').system({self.command!r})",)


class Started:
    """Its pickle asks the reader to start a process."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str, int, None, None, None, None, None, bool, bool]]:
        return subprocess.Popen, (self.command, -1, None, None, None, None, None, True, True)


@pytest.mark.parametrize("kind", [Malicious, Evaluating, Started])
@pytest.mark.parametrize("place", ["beside", "as a weight", "as the whole", "plain pickle"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, kind: type[Malicious], place: str) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "bad.ckpt"
    bad = kind(f"touch '{trace}'")
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(bad))
    elif place == "as the whole":
        torch.save(bad, path)
    elif place == "as a weight":
        torch.save({"state_dict": {"net.x": bad}}, path)
    else:
        torch.save({"state_dict": {"net.x": torch.zeros(1)}, "callbacks": bad}, path)
    with pytest.raises(ValueError, match=r"checkpoint bad\.ckpt: got") as raised:
        read_checkpoint(path)
    if place != "plain pickle":
        assert "nothing of it was executed" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not trace.exists()


def zipped(path: Path, program: bytes, storage: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a checkpoint of a pickle and one storage `0`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", storage)
    return path


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # an empty table, remembered under the number 2**31 - 1
        b"\x80\x05\x96" + (2**45).to_bytes(8, "little") + b".",  # an array of 2**45 bytes
        b"\x80\x05\x8e" + (2**45).to_bytes(8, "little") + b".",  # bytes, as many
    ],
)
def test_a_number_in_a_file_takes_no_memory(tmp_path: Path, program: bytes) -> None:
    path = zipped(tmp_path / "big.ckpt", program)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"^checkpoint big\.ckpt: got .*, expected "):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17, "more than 128 MiB"


class Rebuilt:
    """Stands in a pickle for a tensor of any size and stride over a storage of one number."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.size, self.stride = size, stride

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return torch._utils._rebuild_tensor_v2, (Storage(), 0, self.size, self.stride)


class Storage:
    """Stands for the storage `0`."""


class StoragePickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return ("storage", torch.FloatStorage, "0", "cpu", 1) if isinstance(obj, Storage) else None


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("size", "compression", "reason"),
    [((2**40,), zipfile.ZIP_STORED, "larger than its storage"), ((1,), zipfile.ZIP_DEFLATED, "a compressed storage")],
)
def test_a_small_file_does_not_become_a_large_tensor(
    tmp_path: Path, size: tuple[int, ...], compression: int, reason: str
) -> None:
    program = io.BytesIO()
    StoragePickler(program, 2).dump({"state_dict": {"net.x": Rebuilt(size, (0,))}})
    path = zipped(tmp_path / "bomb.ckpt", program.getvalue(), bytes(4), compression)
    with pytest.raises(ValueError, match=rf"^checkpoint bomb\.ckpt: got .*{reason}"):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.ckpt"
    text.write_text("these are not weights")
    archive = tmp_path / "archive.ckpt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "no weights")
    bare = tmp_path / "bare.ckpt"
    torch.save({"weights": torch.zeros(2)}, bare)
    for path in (text, archive, bare, tmp_path / "none.ckpt"):
        with pytest.raises(ValueError, match=r"checkpoint") as raised:
            read_checkpoint(path)
        assert "\n" not in str(raised.value)


def test_another_tower_is_refused_before_any_work(state: dict[str, Tensor], golden_vit: Vit, clip_vit: Vit) -> None:
    with pytest.raises(ValueError, match="width 64, expected 32"):
        addon_from_state(state, clip_vit.shape, "as_trained")
    deeper = VitShape(
        image_px=224, patch_px=16, width=64, num_heads=4, num_layers=6, mlp_width=128, embed_dim=32, has_cls=True
    )
    with pytest.raises(ValueError, match="layers 4, expected 6"):
        addon_from_state(state, deeper, "as_trained")
    lacking = {name: weight for name, weight in state.items() if "k_mlp" not in name}
    with pytest.raises(ValueError, match=r"got no .*k_mlp"):
        addon_from_state(lacking, golden_vit.shape, "as_trained")
