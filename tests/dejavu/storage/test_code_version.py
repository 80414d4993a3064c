"""A change counts where it may change a number, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu.storage import code_version
from dejavu.storage.code_version import closure_version, import_closure
from dejavu.storage.setting import kernel_version, name_setting
from reuse_models.registry import METHODS
from reuse_models.reusevit.method import ReuseVitConfig


def forget() -> None:
    for cached in (code_version._source, code_version._imports, code_version._meaning, kernel_version):
        cached.cache_clear()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Our own methods in a folder that may be changed."""
    folder = tmp_path / "reuse_models"
    shutil.copytree(code_version.PACKAGES["reuse_models"], folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setitem(code_version.PACKAGES, "reuse_models", folder)
    forget()
    yield folder
    forget()


def version() -> str:
    forget()
    return closure_version([ReuseVitConfig.__module__])


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def test_what_a_method_imports_is_in_its_identity(copied: Path) -> None:
    was = version()
    change(copied / "reusevit" / "gate.py", "TEMPERATURE = 0.025", "TEMPERATURE = 0.05")
    assert version() != was


def test_a_file_in_a_folder_below_is_in_it_too(copied: Path) -> None:
    (copied / "inner").mkdir()
    (copied / "inner" / "__init__.py").write_text("")
    (copied / "inner" / "deep.py").write_text("RATE = 1\n")
    change(
        copied / "reusevit" / "codec_net.py", "import torch\n", "import torch\nfrom reuse_models.inner import deep\n"
    )
    was = version()
    assert "reuse_models.inner.deep" in import_closure("reuse_models.reusevit.method")
    (copied / "inner" / "deep.py").write_text("RATE = 2\n")
    assert version() != was


@pytest.mark.parametrize("name", ["verify/golden.py", "training/fit.py", "baselines/tome.py", "tower/known_shapes.py"])
def test_what_it_does_not_import_is_not(copied: Path, name: str) -> None:
    was = version()
    with (copied / name).open("a", encoding="utf-8") as file:
        file.write("\nMORE = 1\n")
    assert version() == was


def test_comments_docstrings_and_layout_are_not(copied: Path) -> None:
    was = version()
    change(copied / "reusevit" / "gate.py", "TEMPERATURE = 0.025\n", "# Cold.\nTEMPERATURE = (\n    0.025\n)\n")
    change(copied / "reusevit" / "gate.py", '"""Who is reused: ', '"""Said otherwise: ')
    change(copied / "reusevit" / "gate.py", '"""Return logits_XA2."""', '"""Return two logits for each patch."""')
    assert version() == was


def test_what_only_a_type_checker_reads_is_not(copied: Path) -> None:
    was = import_closure("reuse_models.reusevit.codec_net")
    change(
        copied / "reusevit" / "codec_net.py",
        "import torch\n",
        "from typing import TYPE_CHECKING\n\nimport torch\n\n"
        "if TYPE_CHECKING:\n    from reuse_models.verify.golden import compare\n",
    )
    forget()
    assert import_closure("reuse_models.reusevit.codec_net") == was


def test_every_method_has_the_tower_and_the_decoder_in_its_identity() -> None:
    ids = set()
    for config in METHODS.values():
        assert "reuse_models.tower.vit" in import_closure(config.__module__)
        ids.add(kernel_version(config.__module__))
    assert len(ids) == len(METHODS)


def test_a_setting_is_named_by_its_own_methods_code(copied: Path) -> None:
    config = ReuseVitConfig(forced_rate=0.5)
    was = name_setting(config, "tower", {}).setting_id
    change(copied / "baselines" / "tome.py", "merged_per_layer: int = 8", "merged_per_layer: int = 9")
    forget()
    assert name_setting(config, "tower", {}).setting_id == was
    change(copied / "reusevit" / "engines" / "compacted.py", "RESTORE_ALL_FROM = 0.5", "RESTORE_ALL_FROM = 0.6")
    forget()
    assert name_setting(config, "tower", {}).setting_id != was


def test_a_module_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ValueError, match=r"module: got torch\.nn, expected one of dejavu, reuse_models"):
        import_closure("torch.nn")
