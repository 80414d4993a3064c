"""How2QA's files, written here in their published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dejavu.datasets.how2qa import load_how2qa
from dejavu.records import Question

VAL = """aaaaaaaaaa1,[7.2:18.0],10,12,16,how many knives?,1
-bbbbbbbbb2,[134.15:181.52],White,Grey,Red,"What colour, then?",Brown
"""
TEST = '''cccccccccc3,[60.0:60.0],"his ""x""",b,c,who?,d
cccccccccc3,[43.5:60.0],b,c,d,where?,a
dddddddddd4,[0.0:4.5],b,c,d,when?,a
'''
ROW = {
    "qid": "How2QA_0", "vid_name": "aaaaaaaaaa1_0_60", "q": "what?", "a0": "w", "a1": "x", "a2": "y", "a3": "z",
    "answer_idx": 2, "ts": "7.2-18.0",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One clip, one whole video, one clip of the other minute; a video is missing."""
    (tmp_path / "videos").mkdir()
    for name in ("aaaaaaaaaa1_0_60.mp4", "-bbbbbbbbb2.webm", "cccccccccc3_60_120.mp4", "cccccccccc3_0_60.mp4"):
        (tmp_path / "videos" / name).touch()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "how2QA_val_release.csv").write_text(VAL)
    (tmp_path / "annotations" / "how2QA_test_public_release.csv").write_text(TEST)
    return tmp_path


def load(root: Path, **options: Any) -> Any:
    return load_how2qa(root / "videos", root / "annotations", **options)


def right(question: Question) -> str:
    return question.answers[question.correct]


def test_questions_are_asked_of_their_minute_or_of_the_whole(root: Path) -> None:
    dataset = load(root)
    assert [(clip.clip_id, clip.split) for clip in dataset.clips] == [
        ("aaaaaaaaaa1_0_60", "val"), ("-bbbbbbbbb2", "val"), ("cccccccccc3_60_120", "test"),
        ("cccccccccc3_0_60", "test"),
    ]  # fmt: skip
    assert dataset.missing == ("dddddddddd4_0_60",)
    assert [right(one) for one in dataset.questions] == ["1", "Brown", "d", "a"]
    assert dataset.questions[2].answers == ('his "x"', "b", "c", "d")
    assert dataset.questions[1].text == "What colour, then?"
    assert len({one.question_id for one in dataset.questions}) == 4


def test_one_file_alone_is_the_test_split(root: Path) -> None:
    (root / "annotations" / "how2QA_test_public_release.csv").unlink()
    assert {clip.split for clip in load(root).clips} == {"test"}


def test_the_json_form(root: Path) -> None:
    for path in (root / "annotations").iterdir():
        path.unlink()
    rows = [ROW, ROW | {"qid": "How2QA_1", "vid_name": "zz_60_120"}]
    path = root / "annotations" / "how2qa_val_release.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load(root)
    assert [(one.clip_id, one.text, right(one)) for one in dataset.questions] == [("aaaaaaaaaa1_0_60", "what?", "y")]
    assert dataset.missing == ("zz_60_120",)
    for bad, message in (
        ([ROW, ROW], "line 2: got question 'How2QA_0' again"),
        ([ROW | {"answer_idx": 4}], "line 1: got question 'How2QA_0' with answer 4"),
        ([{key: value for key, value in ROW.items() if key != "answer_idx"}], "line 1: got KeyError 'answer_idx'"),
        ([ROW | {"vid_name": "../x"}], "line 1: got video id '../x'"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in bad))
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
            load(root)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vid_id,timesteps,a1,a2,a3,question,a0\n" + TEST, "line 1: got 7 cells, 'vid_id,timesteps"),
        (TEST + "x,[0.0:1.0],a,b,c,q\n", "line 4: got 6 cells"),
        (TEST + "x,0.0:1.0,a,b,c,q,d\n", "line 4: got 7 cells"),
        (TEST + TEST.splitlines()[1] + "\n", "line 4: got line 2 again"),
        (TEST + "x,[0.0:1.0],a,b,c,,d\n", "line 4: got an empty question or answer"),
        (TEST + "a/x,[0.0:1.0],a,b,c,q,d\n", "line 4: got video id 'a/x_0_60'"),
    ],
)
def test_a_csv_that_is_not_as_published_is_one_line(root: Path, text: str, message: str) -> None:
    (root / "annotations" / "how2QA_test_public_release.csv").write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
        load(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_video_of_two_splits_is_refused(root: Path) -> None:
    (root / "annotations" / "how2QA_val_release.csv").write_text(VAL.replace("aaaaaaaaaa1", "cccccccccc3"))
    with pytest.raises(ValueError, match="in val and test, expected each in one split"):
        load(root)


def test_what_is_missing_is_said(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="got neither how2QA_test_public_release"):
        load_how2qa(root / "videos", root / "videos")
    for path in (root / "videos").iterdir():
        path.unlink()
    (root / "videos" / "other.mp4").touch()
    with pytest.raises(ValueError, match="videos: got none of the 5 annotated clips"):
        load(root)
