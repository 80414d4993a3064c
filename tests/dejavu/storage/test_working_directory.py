from __future__ import annotations

from pathlib import Path

import pytest

from dejavu.storage.working_directory import enter_again


def test_a_directory_that_is_made_anew_is_entered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("dejavu.storage.working_directory.HERE", here)
    here.rmdir()
    here.mkdir()
    with pytest.raises(FileNotFoundError):
        Path.cwd()
    enter_again()
    assert Path.cwd() == here


def test_any_other_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dejavu.storage.working_directory.HERE", tmp_path.parent)
    enter_again()
    assert Path.cwd() == tmp_path
