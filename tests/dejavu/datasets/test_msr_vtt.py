"""MSR-VTT's files, written here in their published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dejavu.datasets.msr_vtt import load_msr_vtt
from dejavu.records import CAPTION

CSV = """key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,"a little girl does gymnastics, twice"
"""
SPLITS = {"video0": "train", "video6513": "validate", "video9770": "test", "video9771": "test", "video9772": "test"}


def info(**changes: Any) -> dict[str, Any]:
    videos = [
        {"category": 9, "url": "u", "video_id": name, "start time": 1.5, "end time": 9.0, "split": split, "id": index}
        for index, (name, split) in enumerate(SPLITS.items())
    ]
    sentences = [
        {"caption": f"{name} is shown {turn}", "video_id": name, "sen_id": 2 * index + turn}
        for index, name in enumerate(SPLITS)
        for turn in (0, 1)
    ]
    return {"info": {"year": "2016"}, "videos": videos, "sentences": sentences} | changes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Videos of all splits, one in a subfolder, one of another kind, one missing; both annotation files."""
    (tmp_path / "videos" / "all").mkdir(parents=True)
    for name in ("video0.mp4", "video6513.mp4", "video9770.webm", "all/video9772.mp4"):
        (tmp_path / "videos" / name).touch()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "MSRVTT_JSFUSION_test.csv").write_text(CSV)
    (tmp_path / "annotations" / "MSRVTT_data.json").write_text(json.dumps(info()))
    return tmp_path


def load(root: Path, **options: Any) -> Any:
    return load_msr_vtt(root / "videos", root / "annotations", **options)


def test_the_csv_is_the_test_split_and_json_gives_validation(root: Path) -> None:
    dataset = load(root)
    assert [(clip.clip_id, clip.split) for clip in dataset.clips] == [("video6513", "val"), ("video9770", "test")]
    assert dataset.clips[1].path == str(root / "videos" / "video9770.webm")
    assert dataset.missing == ("video9771",)
    assert [(one.question_id, one.text) for one in dataset.questions] == [
        ("video6513_2", "video6513 is shown 0"),
        ("video6513_3", "video6513 is shown 1"),
        ("ret0", "a person is connecting something to system"),
    ]
    assert {one.kind for one in dataset.questions} == {CAPTION}
    assert all(one.answers == (one.text,) and one.spans_s == () for one in dataset.questions)


def test_without_the_csv_the_full_test_split_is_taken(root: Path) -> None:
    (root / "annotations" / "MSRVTT_JSFUSION_test.csv").unlink()
    dataset = load(root, splits=("test",))
    assert [clip.clip_id for clip in dataset.clips] == ["video9770", "video9772"]
    assert len(dataset.questions) == 4
    assert dataset.missing == ("video9771",)


def test_the_two_official_files_are_read_together(root: Path) -> None:
    whole, annotations = info(), root / "annotations"
    (annotations / "MSRVTT_data.json").unlink()
    (annotations / "MSRVTT_JSFUSION_test.csv").unlink()
    for name, tested in (("train_val_videodatainfo.json", False), ("test_videodatainfo.json", True)):
        names = {video for video, split in SPLITS.items() if (split == "test") == tested}
        part = {key: [one for one in whole[key] if one["video_id"] in names] for key in ("videos", "sentences")}
        (annotations / name).write_text(json.dumps(whole | part))
    dataset = load(root, splits=("train", "val", "test"))
    assert [clip.clip_id for clip in dataset.clips] == ["video0", "video6513", "video9770", "video9772"]


def test_the_csv_alone_has_no_validation(root: Path) -> None:
    (root / "annotations" / "MSRVTT_data.json").unlink()
    assert {clip.split for clip in load(root).clips} == {"test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("sentence\n", "caption\n"), "columns: got key,vid_key,video_id,caption, expected exactly key,"),
        (CSV.replace("vid_key,video_id", "vid_key,extra,video_id"), "columns: got key,vid_key,extra,video_id"),
        (CSV + "ret0,msr0,video0,again\n", "captions: got 'ret0' twice"),
        (CSV + "ret2,msr0,video0\n", "line 4: got another number of cells"),
        (CSV + "ret2,msr0,../video0,up\n", "line 4: got video id '../video0'"),
        (CSV + "ret2,msr0,video0, \n", "line 4: got an empty caption"),
    ],
)
def test_a_csv_that_is_not_as_published_is_one_line(root: Path, text: str, message: str) -> None:
    (root / "annotations" / "MSRVTT_JSFUSION_test.csv").write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
        load(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_that_is_not_as_published_is_one_line(root: Path) -> None:
    whole = info()
    for changed, message in (
        (whole | {"videos": [*whole["videos"], whole["videos"][0]]}, "got video 'video0' of split 'train' again"),
        (whole | {"videos": whole["videos"][1:]}, "got a caption of 'video0', expected one of its 4 videos"),
        (whole | {"sentences": [*whole["sentences"], whole["sentences"][2]]}, "got 'video6513_2' twice"),
        ({"videos": []}, "got no 'sentences' where it belongs"),
        (whole | {"videos": [{"video_id": "video0", "split": "public"}]}, "of split 'public', expected"),
    ):
        (root / "annotations" / "MSRVTT_data.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
            load(root)
        assert message in str(caught.value)
    (root / "annotations" / "MSRVTT_data.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        load(root)


def test_what_is_missing_is_said(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="got neither MSRVTT_JSFUSION_test"):
        load_msr_vtt(root / "videos", root / "videos")
    with pytest.raises(FileNotFoundError, match="videos: got"):
        load_msr_vtt(root / "none", root / "annotations")
    for path in (root / "videos").rglob("video*"):
        path.unlink()
    (root / "videos" / "other.mp4").touch()
    with pytest.raises(ValueError, match="videos: got none of the 3 annotated videos"):
        load(root)


def test_two_files_of_one_name_are_refused(root: Path) -> None:
    (root / "videos" / "all" / "video0.mp4").touch()
    with pytest.raises(ValueError, match="expected one video named 'video0'"):
        load(root)
