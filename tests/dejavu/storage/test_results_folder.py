from __future__ import annotations

from pathlib import Path

import pytest

from dejavu.storage.results_folder import enter_again, local_folder, results_folder, submitted_job
from dejavu.storage.store import StoreError
from dejavu.storage.store_path import store_path


def test_results_go_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "DEJAVU_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert results_folder("tiny", None) == tmp_path / "results" / "tiny"
    assert results_folder("tiny", Path("out")) == tmp_path / "out"


def test_results_may_lie_in_an_object_store_and_a_database_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "DEJAVU_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    given = store_path("s3://bucket/run")
    assert results_folder("tiny", given) == given
    assert local_folder("tiny", given) == tmp_path / "results" / "tiny"
    assert local_folder("tiny", tmp_path / "out") == tmp_path / "out"
    monkeypatch.setenv("DEJAVU_RESULTS", "s3://bucket/all")
    assert results_folder("tiny", None) == store_path("s3://bucket/all/tiny")


def test_a_submitted_job_never_writes_into_rays_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEJAVU_RESULTS", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert results_folder("tiny", None) == tmp_path / "home" / "dejavu-results" / "tiny"
    with pytest.raises(StoreError, match="--results: got out, expected an absolute path"):
        results_folder("tiny", Path("out"))
    monkeypatch.setenv("DEJAVU_RESULTS", str(tmp_path / "kept"))
    assert results_folder("tiny", None) == tmp_path / "kept" / "tiny"


def test_a_submitted_job_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DEJAVU_RESULTS", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StoreError, match="--results: got none and no home"):
        results_folder("tiny", None)


def test_a_submitted_job_knows_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    assert submitted_job() == "raysubmit_1"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert submitted_job() is None


def test_a_directory_that_is_made_anew_is_entered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("dejavu.storage.results_folder.HERE", here)
    here.rmdir()
    here.mkdir()
    with pytest.raises(FileNotFoundError):
        Path.cwd()
    enter_again()
    assert Path.cwd() == here


def test_any_other_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dejavu.storage.results_folder.HERE", tmp_path.parent)
    enter_again()
    assert Path.cwd() == tmp_path
