"""The process apart, asked for things that would end this one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu.video.apart import KEPT, Apart, ApartError

ANSWERS = """
import ctypes, os, re, sys, time
from dejavu.video.apart import serve

def answer(request):
    what = request["what"]
    if what == "crash":
        ctypes.string_at(0)
    elif what == "hang":  # inside one call, which holds the interpreter's lock and never returns
        re.fullmatch("(a+)+b", "a" * 64)
    elif what == "memory":
        try:
            bytearray(16 * 2**30)
        except MemoryError:
            return {"said": "no memory"}
    elif what == "environment":
        return dict(os.environ)
    elif what == "leave":
        os._exit(3)
    print("a library prints")
    return {"said": what, "process": os.getpid()}

serve(answer)
"""


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.syspath_prepend(tmp_path)
    apart = Apart("answers")
    yield apart
    apart.close()


def test_one_process_answers_one_request_after_the_other(apart: Apart) -> None:
    first, second = (apart.ask({"what": word}, 60) for word in ("é", "\udcff"))
    assert (first["said"], second["said"]) == ("é", "\udcff")
    assert first["process"] == second["process"] != os.getpid()


def test_a_crash_is_an_error_and_the_next_request_is_answered(apart: Apart) -> None:
    with pytest.raises(ApartError, match=r"^answers: got an end by SIGSEGV, expected a reply; ") as raised:
        apart.ask({"what": "crash"}, 60)
    assert raised.value.signal is signal.SIGSEGV
    assert apart.ask({"what": "x"}, 60)["said"] == "x"


def test_a_call_that_never_returns_is_ended(apart: Apart) -> None:
    apart.ask({"what": "x"}, 60)  # it has started, so that the limit is of the answer alone
    start = time.monotonic()
    with pytest.raises(ApartError) as raised:
        apart.ask({"what": "hang"}, 0.2)
    assert raised.value.signal == signal.SIGALRM
    assert time.monotonic() - start >= 0.2


def test_an_answer_in_time_disarms_the_alarm(apart: Apart) -> None:
    apart.ask({"what": "x"}, 60)
    process = apart.ask({"what": "x"}, 0.3)["process"]
    time.sleep(0.4)
    assert apart.ask({"what": "x"}, 60)["process"] == process


def test_memory_has_a_bound(apart: Apart) -> None:
    assert apart.ask({"what": "memory"}, 60) == {"said": "no memory"}


def test_no_key_of_the_environment_is_seen(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    seen = apart.ask({"what": "environment"}, 60)
    assert "hunter2" not in seen.values()
    assert set(seen) <= {*KEPT, "PYTHONPATH", "LC_CTYPE"}


def test_a_process_that_leaves_is_told_from_one_that_was_idle(apart: Apart) -> None:
    with pytest.raises(ApartError, match="status 3") as raised:
        apart.ask({"what": "leave"}, 60)
    assert raised.value.signal is None
    assert raised.value.signal != signal.SIGALRM


def test_one_that_ended_for_want_of_requests_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hasty.py").write_text("import dejavu.video.apart as apart\napart.IDLE_S = 0.05\n" + ANSWERS)
    monkeypatch.syspath_prepend(tmp_path)
    apart = Apart("hasty")
    first = apart.ask({"what": "x"}, 60)["process"]
    time.sleep(0.5)
    assert apart.ask({"what": "x"}, 60)["process"] != first
    apart.close()
