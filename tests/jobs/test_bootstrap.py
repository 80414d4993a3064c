"""What every job does before anything else."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from requests.utils import get_environ_proxies

BOOTSTRAP = Path(__file__).resolve().parents[2] / "jobs" / "_bootstrap.py"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "ascii:strict"])
def test_a_terminal_of_few_characters_shows_their_numbers(encoding: str) -> None:
    code = "import _bootstrap, subprocess, sys; print('déjà 映画 \\udc81', file=sys.stderr)\n"
    code += "sys.stderr.flush(); print('été 映画', flush=True)\n"
    code += "subprocess.run([sys.executable, '-c', 'print(chr(0x6620))'], check=True)"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(BOOTSTRAP.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("latin-1")
    name = encoding.partition(":")[0]
    said = done.stdout.decode(name).split()
    assert said[0] == ("\\xe9t\\xe9" if name == "ascii" else "été")
    assert said[1:] == (["映画", "映"] if name == "utf-8" else ["\\u6620\\u753b", "\\u6620"])


@pytest.fixture
def behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")


def through_the_proxy(host: str) -> set[bool]:
    """Whether requests, which Ray's submission and MLflow use, and urllib would ask the proxy."""
    url = f"http://{host}:8265/api"
    return {bool(get_environ_proxies(url)), not urllib.request.proxy_bypass_environment(f"{host}:8265")}


@pytest.mark.usefixtures("behind_a_proxy")
def test_loopback_never_goes_through_a_proxy() -> None:
    assert through_the_proxy("127.0.0.1") == {True}
    runpy.run_path(str(BOOTSTRAP))
    assert through_the_proxy("127.0.0.1") == through_the_proxy("localhost") == {False}
    assert through_the_proxy("mlflow.example.org") == {True}
    assert not get_environ_proxies("http://[::1]:5000")
    assert not get_environ_proxies("http://127.0.1.1:5000")


@pytest.mark.usefixtures("behind_a_proxy")
def test_hosts_that_the_user_exempts_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "mlflow.example.org, .corp")
    for _ in range(2):
        runpy.run_path(str(BOOTSTRAP))
    for host in ("mlflow.example.org", "a.corp", "127.0.0.1"):
        assert through_the_proxy(host) == {False}
    monkeypatch.setenv("no_proxy", "*")
    runpy.run_path(str(BOOTSTRAP))
    assert through_the_proxy("anywhere.example.org") == {False}
