from __future__ import annotations

from pathlib import Path

import pytest

from dejavu.records import Failure
from dejavu.storage.failed import TooManyFailures, check_failures, write_failures_csv
from dejavu.storage.store import Store


def failure(name: str, stage: str = "embed") -> Failure:
    return Failure(clip_id=name, stage=stage, reason="broken, badly")


def test_a_clip_that_failed_twice_counts_once() -> None:
    check_failures([failure("a", "sweep"), failure("a")], num_clips=10, num_left=9, limit=0.1)
    with pytest.raises(TooManyFailures, match=r"got 2 of 10 clips failed, expected at most 10%.*\n  a  embed  broken"):
        check_failures([failure("a"), failure("b")], num_clips=10, num_left=8, limit=0.1)


def test_no_clip_left_is_never_a_success() -> None:
    with pytest.raises(TooManyFailures, match="got no clip left of 3"):
        check_failures([], num_clips=3, num_left=0, limit=1.0)


def test_the_table_holds_every_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_failures("transcode", [failure('b "x"', "transcode")])
    store.write_failures("embed", [failure("a")], part="val")
    found = write_failures_csv(store, tmp_path / "failures.csv")
    assert [entry.stage for entry in found] == ["embed", "transcode"]
    assert (tmp_path / "failures.csv").read_text() == (
        'clip,stage,reason\na,embed,"broken, badly"\n"b ""x""",transcode,"broken, badly"\n'
    )
