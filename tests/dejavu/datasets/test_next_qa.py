from __future__ import annotations

import csv
import json
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from dejavu.datasets.next_qa import COLUMNS, load_frame_times, load_next_qa, load_questions
from dejavu.storage.store_path import StorePath, store_path

ROWS: dict[str, list[dict[str, str]]] = {
    "val": [
        {"video_id": "111", "qid": "0", "type": "CW", "question": "why", "answer": "b"},
        {"video_id": "222", "qid": "3", "type": "TN", "question": "what, then", "answer": "e"},
    ],
    "test": [
        {"video_id": "333", "qid": "0", "type": "CH", "question": "how", "answer": "a"},
        {"video_id": "333", "qid": "1", "type": "CH", "question": "how else", "answer": "c"},
    ],
    "train": [{"video_id": "444", "qid": "0", "type": "CH", "question": "how", "answer": "a"}],
}
REST = {"frame_count": "90", "width": "320", "height": "240", "a0": "a", "a1": "b", "a2": "c", "a3": "d", "a4": "e"}
PLACES = {"111": "0001/111", "222": "0002/222", "333": "0001/333", "444": "0003/444"}


def write_csv(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(REST | row for row in rows)


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Path, Path]:
    """Videos 111 by the id map, 333 flat, 222 missing; annotations of val and test as in a download."""
    videos, annotations = tmp_path / "videos", tmp_path / "annotations"
    (videos / "0001").mkdir(parents=True)
    (videos / "0001" / "111.mp4").write_bytes(b"1")
    (videos / "333.mp4").write_bytes(b"3")
    annotations.mkdir()
    spans = {
        "val": {"111": {"0": [[0.5, 2]]}, "222": {"3": [[1, 2.5], [4, 5]]}},
        "test": {"333": {"0": [[-0.1, 3.0]]}},
    }
    for split, located in spans.items():
        write_csv(annotations / f"{split}.csv", ROWS[split])
        gsub = {video: {"duration": 9, "fps": 30.0, "location": location} for video, location in located.items()}
        (annotations / f"gsub_{split}.json").write_text(json.dumps(gsub))
        (annotations / f"frame2time_{split}.json").write_text(json.dumps({video: [0.5, 1, 2.5] for video in located}))
    (annotations / "map_vid_vidorID.json").write_text(json.dumps(PLACES))
    return videos, annotations


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_the_published_annotations_have_the_published_counts(shared_dir: Path, tmp_path: Path) -> None:
    annotations = shared_dir / "data" / "nextgqa"
    counts = {}
    for split in ("val", "test"):
        questions = load_questions(annotations, split)  # type: ignore[arg-type]
        times = load_frame_times(annotations, split)  # type: ignore[arg-type]
        assert all(len(times[question.clip_id]) == 32 for question in questions)
        assert all(question.spans_s and question.duration_s > 0 for question in questions)
        counts[split] = (len(questions), len({question.clip_id for question in questions}))
    assert counts == {"val": (3358, 567), "test": (5553, 990)}

    dataset = load_next_qa(tmp_path, annotations)
    assert (len(dataset.clips), len(dataset.questions), len(dataset.missing)) == (0, 0, 567 + 990)


def test_the_published_id_map_places_each_video(shared_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "1164").mkdir()
    (tmp_path / "1164" / "3238737531.mp4").write_bytes(b"1")
    annotations = shared_dir / "data" / "nextgqa"
    place = json.loads((annotations / "map_vid_vidorID.json").read_text())["2574374895"]
    video = tmp_path / f"{place}.mp4"
    video.parent.mkdir(exist_ok=True)
    video.write_bytes(b"1")
    dataset = load_next_qa(tmp_path, annotations, splits=("test",))
    assert [(clip.clip_id, clip.path, clip.split) for clip in dataset.clips] == [("2574374895", str(video), "test")]
    assert len(dataset.missing) == 989
    assert {question.clip_id for question in dataset.questions} == {"2574374895"}
    kinds = Counter(question.kind for question in dataset.questions)
    assert kinds.total() == len(dataset.questions) > 1


def test_annotations_are_joined_with_the_videos_that_are_there(layout: tuple[Path, Path]) -> None:
    videos, annotations = layout
    dataset = load_next_qa(videos, annotations)
    assert [(clip.clip_id, Path(clip.path).relative_to(videos).as_posix(), clip.split) for clip in dataset.clips] == [
        ("111", "0001/111.mp4", "val"),
        ("333", "333.mp4", "test"),
    ]
    assert dataset.missing == ("222",)
    first, *rest = dataset.questions
    assert (first.question_id, first.correct, first.spans_s, first.duration_s) == ("111_0", 1, ((0.5, 2.0),), 9.0)
    assert [(question.question_id, question.spans_s) for question in rest] == [
        ("333_0", ((-0.1, 3.0),)),
        ("333_1", ()),
    ]


def test_annotations_and_videos_may_lie_in_an_object_store(layout: tuple[Path, Path]) -> None:
    away = store_path(f"memory://{uuid.uuid4().hex}")
    assert isinstance(away, UPath)
    for folder in layout:
        away.fs.put(f"{folder}/", f"{away.path}/{folder.name}/", recursive=True)
    here, there = load_next_qa(*layout), load_next_qa(*(away / folder.name for folder in layout))
    assert (there.questions, there.missing) == (here.questions, here.missing)
    assert [(clip.clip_id, Path(clip.path).name) for clip in there.clips] == [
        (clip.clip_id, Path(clip.path).name) for clip in here.clips
    ]


@pytest.mark.parametrize("ending", [".MP4", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("is_away", [False, True])
def test_any_container_serves_under_an_id(layout: tuple[Path, Path], ending: str, is_away: bool) -> None:
    videos, annotations = layout
    (videos / "0001" / "111.mp4").rename(videos / "0001" / f"111{ending}")
    (videos / "0001" / "111.txt").touch()
    (videos / "333.aac.avi").touch()
    (videos / f"333{ending}").touch()
    (videos / "0002").mkdir()
    (videos / "0002" / f"222{ending}").mkdir()  # a folder is no video
    at: StorePath = videos
    if is_away:
        at = store_path(f"memory://{uuid.uuid4().hex}")
        assert isinstance(at, UPath)
        at.fs.put(f"{videos}/", f"{at.path}/", recursive=True)
    dataset = load_next_qa(at, annotations)
    assert [Path(clip.path).name for clip in dataset.clips] == [f"111{ending}", "333.mp4"]
    assert dataset.missing == ("222",)


def test_one_split_can_be_loaded_alone(layout: tuple[Path, Path]) -> None:
    assert [clip.split for clip in load_next_qa(*layout, splits=("test",)).clips] == ["test"]


def test_train_needs_neither_its_csv_nor_spans(layout: tuple[Path, Path]) -> None:
    videos, annotations = layout
    assert load_next_qa(videos, annotations, splits=("train",)).clips == ()
    write_csv(annotations / "train.csv", ROWS["train"])
    (videos / "444.mp4").write_bytes(b"4")
    dataset = load_next_qa(videos, annotations, splits=("train",))
    assert [clip.clip_id for clip in dataset.clips] == ["444"]
    assert [question.spans_s for question in dataset.questions] == [()]
    gsub = {"444": {"duration": 9, "location": {"0": [[1, 2]]}}}
    (annotations / "gsub_train.json").write_text(json.dumps(gsub))
    assert load_questions(annotations, "train")[0].spans_s == ((1.0, 2.0),)


@pytest.mark.parametrize(
    "name", ["val.csv", "test.csv", "gsub_val.json", "frame2time_test.json", "map_vid_vidorID.json"]
)
def test_a_missing_annotation_file_is_named(layout: tuple[Path, Path], name: str) -> None:
    (layout[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file {name} in .*see docs/nextqa.md"):
        load_next_qa(*layout)


def test_missing_folders_are_named(layout: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere, which is no folder"):
        load_next_qa(tmp_path / "nowhere", layout[1])
    with pytest.raises(FileNotFoundError, match=r"no file map_vid_vidorID.json in .*nowhere"):
        load_next_qa(layout[0], tmp_path / "nowhere")


def test_an_unknown_column_is_named(layout: tuple[Path, Path]) -> None:
    columns = tuple("query" if column == "question" else column for column in COLUMNS)
    rows = [{"query" if key == "question" else key: value for key, value in row.items()} for row in ROWS["val"]]
    write_csv(layout[1] / "val.csv", rows, columns)
    with pytest.raises(ValueError, match=r"val.csv columns: got \['query'\] too many and \['question'\] missing"):
        load_next_qa(*layout)


@pytest.mark.parametrize("place", ["../x", "/etc/x", "0001/../../x", "..\\x", "", 7])
def test_a_place_outside_the_folder_is_refused(layout: tuple[Path, Path], place: object) -> None:
    edit(layout[1] / "map_vid_vidorID.json", lambda places: places.update({"111": place}))
    with pytest.raises(ValueError, match="expected a place inside the videos folder"):
        load_next_qa(*layout)


@pytest.mark.parametrize("video_id", ["../111", "/111", "..", "", "a\\b", "a\tb", "x" * 300])
def test_a_video_id_that_is_a_path_is_refused(layout: tuple[Path, Path], video_id: str) -> None:
    write_csv(layout[1] / "val.csv", [ROWS["val"][0] | {"video_id": video_id}])
    with pytest.raises(ValueError, match=r"val.csv line 2: got video id .*expected a plain name"):
        load_next_qa(*layout)


def test_a_wrong_row_is_named_by_its_line(layout: tuple[Path, Path]) -> None:
    write_csv(layout[1] / "val.csv", [ROWS["val"][0], ROWS["val"][1] | {"answer": "zebra"}])
    with pytest.raises(ValueError, match=r"val.csv line 3: got answer 'zebra'"):
        load_next_qa(*layout)
    write_csv(layout[1] / "val.csv", [ROWS["val"][0]] * 2)
    with pytest.raises(ValueError, match=r"val.csv line 3: got question '111_0' again"):
        load_next_qa(*layout)
    with (layout[1] / "val.csv").open("a") as file:
        file.write("111,90\n")
    with pytest.raises(ValueError, match=r"val.csv line 4: got another number of cells"):
        load_next_qa(*layout)


def test_a_video_in_two_splits_is_refused(layout: tuple[Path, Path]) -> None:
    write_csv(layout[1] / "test.csv", [ROWS["val"][0]])
    with pytest.raises(ValueError, match=r"test.csv: got video '111', which val.csv has too"):
        load_next_qa(*layout)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("gsub_val.json", "{", "gsub_val.json: got .*expected JSON"),
        ("gsub_val.json", "[]", "expected an object"),
        ("gsub_val.json", '{"111": {"duration": 9}}', "expected duration and location"),
        ("gsub_val.json", '{"111": {"duration": 9, "location": {"0": [[3, 2]]}}}', "expected start <= end"),
        ("gsub_val.json", '{"111": {"duration": 9, "location": {"0": [[1, "inf"]]}}}', "expected start <= end"),
        ("gsub_val.json", '{"111": {"duration": "nan", "location": {}}}', "expected 0 or more"),
        ("frame2time_val.json", '{"111": [2, 1]}', "expected a list of ascending seconds"),
        ("frame2time_val.json", '{"111": [1, NaN]}', "got the number NaN, expected JSON"),
        ("val.csv", "", "columns: got"),
        ("val.csv", ",".join((*COLUMNS, "a4")) + "\n", "columns: got"),
        ("val.csv", ",".join(COLUMNS) + "\n", "got no questions"),
    ],
)
def test_a_file_that_does_not_read_is_named(layout: tuple[Path, Path], name: str, text: str, complaint: str) -> None:
    (layout[1] / name).write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load_next_qa(*layout)


def test_a_csv_in_another_encoding_is_named(layout: tuple[Path, Path]) -> None:
    (layout[1] / "val.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected a CSV in UTF-8"):
        load_next_qa(*layout)
