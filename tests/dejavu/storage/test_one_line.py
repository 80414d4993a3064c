"""What ends a command is one line; a mistake of ours keeps its stack trace."""

from __future__ import annotations

import errno
import pickle

import pytest
from ray.exceptions import RayTaskError, UserCodeException

from dejavu.storage import store
from dejavu.storage.one_line import OneLineError, exit_status, line_of
from dejavu.storage.store import StorageError, retry_io

NOTICE = "storage: got '[Errno 28] No space left on device' for 63 s, expected that it answers"
TRACE = f"""ray::MapWorker(MapBatches(EncodeRow)).submit() (pid=1, ip=127.0.0.1)
OSError: [Errno 28] No space left on device

The above exception was the direct cause of the following exception:

ray::MapWorker(MapBatches(EncodeRow)).submit() (pid=1, ip=127.0.0.1)
  File "store.py", line 1, in retry_io
    raise stays from error
dejavu.storage.store.StorageError: {NOTICE}

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
"""


def raised_in_worker(cause: Exception, trace: str) -> Exception:
    """Make what the driver gets of it."""
    error: Exception = RayTaskError("f", trace, cause, "ray::f", 1, "127.0.0.1").as_instanceof_cause()
    return error


def test_what_a_worker_says_in_one_line_is_told_as_it_was_there() -> None:
    trace = "Traceback (most recent call last):\n  somewhere\nValueError: fps: got 500"
    assert line_of(raised_in_worker(ValueError("fps: got 500"), trace)) == "fps: got 500"
    assert line_of(raised_in_worker(UserCodeException("UDF failed to process a data block."), TRACE)) == NOTICE
    trace = (
        "av.error.OSError: [Errno 28] No space left on device: 'a.mp4'\n\nray.exceptions.UserCodeException: UDF failed"
    )
    told = line_of(raised_in_worker(UserCodeException("UDF failed"), trace))
    assert told == "[Errno 28] No space left on device: 'a.mp4'"


def test_a_mistake_of_ours_keeps_its_stack_trace() -> None:
    assert line_of(TypeError("storage: got 1")) is None
    trace = "Traceback (most recent call last):\nTypeError: no"
    assert line_of(raised_in_worker(TypeError("no"), trace)) is None
    assert line_of(raised_in_worker(UserCodeException("UDF failed to process a data block."), trace)) is None

    def run() -> int:
        raise TypeError("no")

    with pytest.raises(TypeError):
        exit_status(run)


def test_the_line_is_an_error_and_the_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise OneLineError("x: got 1, expected 2; try 2")

    assert exit_status(run) == 1
    assert capsys.readouterr().err == "error: x: got 1, expected 2; try 2\n"
    assert exit_status(lambda: None) == 0


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_storage_that_stays_away_is_one_line_that_says_whether_it_is_full(
    number: int, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        raise OSError(number, "first\nsecond")

    monkeypatch.setattr(store.time, "sleep", lambda _: None)
    with pytest.raises(StorageError) as caught:
        retry_io(write)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, OSError)
        assert str(error) == (
            f"storage: got '[Errno {number}] first' for 63 s, expected that it answers; mend or free it and run the "
            "same command again: what is done is kept"
        )
        assert error.full == full
