"""A cluster of our own where TMPDIR is long, as batch systems set it, or where there is no home."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dejavu.cluster import own_folder

LONGEST_SOCKET = "/dejavu-12345678/session_2026-11-28_10-53-50_123456_4194304/sockets/dash_MetricsHead"


@pytest.fixture
def at_end(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is to be done when the process ends."""
    calls: list[Callable[[], None]] = []
    monkeypatch.setattr(own_folder, "atexit", SimpleNamespace(register=calls.append))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setenv("TMPDIR", "/tmp")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def test_sockets_fit_into_a_tmpdir_however_long_it_was(
    at_end: list[Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own_folder.shorten_tmpdir()
    assert (os.environ["TMPDIR"], at_end) == ("/tmp", []), "short enough"
    long = tmp_path / "scratch" / ("job-" + "1" * 60)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    own_folder.shorten_tmpdir()
    chosen = os.environ["TMPDIR"]
    assert len(os.fsencode(chosen + LONGEST_SOCKET)) <= 107
    assert tempfile.gettempdir() == chosen
    assert Path(chosen).stat().st_mode & 0o777 == 0o700
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert str(long) in said
    at_end[0]()
    assert not Path(chosen).exists()


@pytest.mark.usefixtures("at_end")
def test_no_short_folder_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 60)))
    monkeypatch.setattr(own_folder, "SHORT", (str(tmp_path / "missing"),))
    with pytest.raises(own_folder.FolderError, match=r"^TMPDIR: got .* expected at most 21 bytes.*shorter folder$"):
        own_folder.shorten_tmpdir()


@pytest.mark.parametrize("home", ["missing", "file", ""])
def test_without_a_home_the_token_lies_in_a_private_folder(
    home: str,
    at_end: list[Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home) if home else "")
    own_folder.ensure_token()
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert capsys.readouterr().out.count("\n") == 1
    own_folder.ensure_token()
    assert len(at_end) == 1, "one is enough"
    shutil.rmtree(token.parent)


def test_a_home_a_token_or_no_need_of_one_is_left_as_it_is(
    at_end: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own_folder.ensure_token()
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    own_folder.ensure_token()
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    own_folder.ensure_token()
    assert at_end == []
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
