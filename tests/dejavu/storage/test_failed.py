from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dejavu.records import Failure, Transcoded
from dejavu.storage.failed import TooManyFailures, check_failures, say_odd, write_failures_csv, write_odd_csv
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


def test_what_is_odd_but_used_stands_in_two_tables_and_is_said(tmp_path: Path) -> None:
    whole = Transcoded(
        clip_id="whole", content_id="w", path="mp4/w.mp4", num_frames=9, frame_px=64, fps=2.0, duration_s=4.5,
        codec_metadata=True,
    )  # fmt: skip
    damaged = replace(whole, clip_id="b", num_damaged=2, num_missing=1, damaged_share=0.0125, concealed="4-6")
    joined = replace(whole, clip_id="a, b", remarks="at 10.0 s the clock jumps by 60.5 s: laid end to end")
    odd = write_odd_csv([whole, damaged, joined], tmp_path)
    assert [clip.clip_id for clip in odd] == ["a, b", "b"]
    assert (tmp_path / "damaged.csv").read_text() == (
        "clip,damaged,missing,share,concealed_frames\nb,2,1,0.012500,4-6\n"
    )
    assert (tmp_path / "remarks.csv").read_text() == (
        'clip,remarks\n"a, b",at 10.0 s the clock jumps by 60.5 s: laid end to end\n'
    )
    assert say_odd(odd) == [
        "1 clips have damaged or missing pictures, which were concealed: damaged.csv",
        "1 clips are not as usual: remarks.csv",
        "  a, b  at 10.0 s the clock jumps by 60.5 s: laid end to end",
    ]
    assert write_odd_csv([whole], tmp_path) == []
    assert (tmp_path / "damaged.csv").read_text() == "clip,damaged,missing,share,concealed_frames\n"
    assert say_odd([]) == []
