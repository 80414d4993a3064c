"""Attaching to a cluster, or leaving it alone: another version, one that is half dead, one that has ended."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from dejavu.cluster import cluster
from dejavu.cluster.cluster import ClusterError, connect


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What Ray is asked to attach to or start, on a machine where nothing is noted."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **words: calls.append(words))
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return calls


@pytest.fixture
def silent() -> Iterator[str]:
    """A control store that is stopped: the system takes the connection, and nobody says a word."""
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def alive() -> Iterator[str]:
    """A control store that answers, if only that it does not know the question."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def note(folder: Path, address: str) -> None:
    """Leave what `ray start` leaves on a machine."""
    (folder / "ray" / "ray_current_cluster").write_text(address)


def other_version(monkeypatch: pytest.MonkeyPatch, attempts: list[dict[str, Any]]) -> None:
    """Let Ray refuse everything but a cluster of our own."""

    def init(**words: Any) -> None:
        attempts.append(words)
        if words["address"] != "local":
            raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.9.1\n")

    monkeypatch.setattr(ray, "init", init)


def test_a_control_store_answers_or_it_does_not(silent: str, alive: str, attempts: list[dict[str, Any]]) -> None:
    assert cluster.answers(alive)
    assert not cluster.answers(silent)
    assert not cluster.answers("127.0.0.1:1"), "nobody listens"
    assert not attempts


def test_a_cluster_that_answers_is_attached_to(
    alive: str, tmp_path: Path, attempts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    note(tmp_path, alive)
    connect(num_cpus=2)
    monkeypatch.setenv("RAY_ADDRESS", alive)
    connect(num_cpus=2)
    assert [(words["address"], words.get("num_cpus")) for words in attempts] == [(None, None), (alive, None)]


@pytest.mark.parametrize("kind", ["silent", "ended", "other"])
def test_a_useless_cluster_that_was_found_is_left_alone(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    attempts: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = {"silent": "silent", "other": "alive"}.get(kind)
    note(tmp_path, request.getfixturevalue(address) if address else "127.0.0.1:1")
    if kind == "other":
        other_version(monkeypatch, attempts)
    connect(num_cpus=2)
    assert (attempts[-1]["address"], attempts[-1]["num_cpus"]) == ("local", 2)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "starting a cluster of our own" in said
    assert ("Ray: 2.50.0" if kind == "other" else "no answer from") in said


@pytest.mark.parametrize("kind", ["silent", "ended", "other", "auto", "nonsense"])
def test_a_useless_cluster_that_was_asked_for_is_one_line(
    kind: str,
    request: pytest.FixtureRequest,
    attempts: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"ended": "127.0.0.1:1", "auto": "auto", "nonsense": "here"}.get(kind)
    address = given or request.getfixturevalue({"silent": "silent", "other": "alive"}[kind])
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    if kind == "other":
        other_version(monkeypatch, attempts)
    with pytest.raises(ClusterError, match=r"^Ray: got .*, expected a running cluster .*unset RAY_ADDRESS$") as caught:
        connect()
    assert address.rpartition(":")[2] in str(caught.value)
    assert all(words["address"] == address for words in attempts)
