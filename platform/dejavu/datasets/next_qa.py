"""NExT-QA's video folders with NExT-GQA's annotation files.

`map_vid_vidorID.json` gives each video's place (`"2909445186": "0101/2909445186"`), `<split>.csv` the questions,
`gsub_<split>.json` the annotated spans and durations, `frame2time_<split>.json` the times of 32 sampled frames.
The published train split has no spans and no frame times, and its CSV is not part of every download.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from dejavu.datasets.strict_json import read_json
from dejavu.datasets.video_folder import is_video
from dejavu.records import Clip, Dataset, Question, Split
from dejavu.storage.store_path import StorePath, is_file, is_folder, names_below

ID_MAP = "map_vid_vidorID.json"
LONGEST_NAME = 200
"""Bytes of a name from an annotation: with an ending it is a file's, and those have 255."""
CHOICES = ("a0", "a1", "a2", "a3", "a4")
COLUMNS = ("video_id", "frame_count", "width", "height", "question", "answer", "qid", "type", *CHOICES)

_Located = tuple[float, dict[str, tuple[tuple[float, float], ...]]]
"""A video's duration in seconds, and annotated spans by question number."""


def load_next_qa(videos: StorePath, annotations: StorePath, *, splits: Sequence[Split] = ("val", "test")) -> Dataset:
    """Join annotations with the videos that are there.

    Args:
        videos: Folder of `<place from the id map>.mp4`, or flat, of `<video id>.mp4`; another container serves as well.
        annotations: Folder of the files above.
        splits: Those to load. A train split without a CSV gives no clips; a question without an annotated span is
            kept, with no spans, and does not count when scored.

    Returns:
        Clips and questions of the videos that are there, ordered by split and then as in the CSV; the ids of the
        other videos in `missing`.

    Raises:
        FileNotFoundError: A folder or an annotation file is missing.
        ValueError: An annotation file does not read as expected, or an id points outside `videos`.
    """
    if not is_folder(videos):
        raise FileNotFoundError(
            f"videos: got {videos}, which is no folder, expected NExT-QA's videos; see docs/nextqa.md"
        )
    places = _places(annotations)
    find = _finder(videos)
    clips: dict[str, Clip] = {}
    missing: dict[str, None] = {}  # a set that keeps the order
    questions: list[Question] = []
    for split in splits:
        for question in load_questions(annotations, split):
            clip_id = question.clip_id
            if clip_id in clips and clips[clip_id].split != split:
                raise ValueError(
                    f"{split}.csv: got video {clip_id!r}, which {clips[clip_id].split}.csv has too, expected each in "
                    "one split; take the CSVs of one download"
                )
            if clip_id not in clips and clip_id not in missing:
                stems = [str(places.get(clip_id, clip_id)), clip_id]
                name = next(filter(None, map(find, stems)), None)
                if name is None:
                    missing[clip_id] = None
                else:
                    clips[clip_id] = Clip(clip_id=clip_id, path=str(videos / name), split=split)
            if clip_id in clips:
                questions.append(question)
    return Dataset(name="next_qa", clips=tuple(clips.values()), questions=tuple(questions), missing=tuple(missing))


def load_questions(annotations: StorePath, split: Split) -> tuple[Question, ...]:
    """Read one split's questions without looking for videos.

    Args:
        annotations: As in load_next_qa.
        split: Of train there may be no CSV; without a gsub file its questions have no spans and no duration (0).

    Raises:
        FileNotFoundError: An annotation file is missing.
        ValueError: One does not read as expected.
    """
    path = annotations / f"{split}.csv"
    if split == "train" and is_folder(annotations) and not is_file(path):
        return ()
    spans_path = annotations / f"gsub_{split}.json"
    spans = {} if split == "train" and not is_file(spans_path) else _spans(spans_path)
    if split != "train":
        load_frame_times(annotations, split)  # only to say now, not after hours of work, that it is missing
    questions: dict[str, Question] = {}
    for where, row in _rows(path):
        question = _question(where, row, split, spans)
        if question.question_id in questions:
            raise ValueError(
                f"{where}: got question {question.question_id!r} again, expected each once; remove one of them"
            )
        questions[question.question_id] = question
    if not questions:
        raise ValueError(f"{path.name}: got no questions, expected one a line; download it again")
    return tuple(questions.values())


def load_frame_times(annotations: StorePath, split: Split) -> dict[str, tuple[float, ...]]:
    """Read the seconds of each video's uniformly sampled frames, by video id.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It does not map ids to ascending numbers.
    """
    path = annotations / f"frame2time_{split}.json"
    times = {}
    for clip_id, values in _object(path).items():
        if not (isinstance(values, list) and all(map(_is_number, values)) and values == sorted(values)):
            raise ValueError(
                f"{path.name}: got {str(values)[:60]} for video {clip_id!r}, expected a list of ascending seconds; "
                "download it again"
            )
        times[clip_id] = tuple(float(value) for value in values)
    return times


def _question(where: str, row: Mapping[str, str], split: Split, spans: Mapping[str, _Located]) -> Question:
    clip_id, qid = row["video_id"], row["qid"]
    check_id(where, clip_id)
    answers = tuple(row[choice] for choice in CHOICES)
    if row["answer"] not in answers:
        raise ValueError(f"{where}: got answer {row['answer']!r}, expected one of {answers}; correct the row")
    duration_s, located = spans.get(clip_id, (0.0, {}))
    return Question(
        question_id=f"{clip_id}_{qid}",
        clip_id=clip_id,
        split=split,
        kind=row["type"],
        text=row["question"],
        answers=answers,
        correct=answers.index(row["answer"]),
        spans_s=located.get(qid, ()),
        duration_s=duration_s,
    )


def check_id(where: str, clip_id: str) -> None:
    """Refuse an id that is not one plain name, since it becomes part of paths and of lines.

    Raises:
        ValueError: It is empty, hidden, too long for a file's name, or has a separator or a line's end in it.
    """
    plain = 0 < len(clip_id.encode("utf-8", "replace")) <= LONGEST_NAME and clip_id.isprintable()
    if not plain or clip_id.startswith(".") or any(character in clip_id for character in "/\\"):
        raise ValueError(
            f"{where}: got video id {clip_id[:60]!r}, expected a plain name without a path, so that it stays inside "
            f"the folder, of at most {LONGEST_NAME} bytes; correct the annotation"
        )


def _places(annotations: StorePath) -> dict[str, PurePosixPath]:
    path = annotations / ID_MAP
    places = {}
    for clip_id, value in _object(path).items():
        place = PurePosixPath(value) if isinstance(value, str) else None
        if place is None or not _stays_inside(place):
            raise ValueError(
                f"{path.name}: got {str(value)[:60]!r} for video {clip_id[:60]!r}, expected a place inside the videos "
                'folder such as "0101/2909445186"; correct the annotation'
            )
        places[clip_id] = place
    return places


def _stays_inside(place: PurePosixPath) -> bool:
    plain = str(place).isprintable() and "\\" not in str(place) and ".." not in place.parts
    return bool(place.parts) and not place.is_absolute() and plain and max(map(len, place.parts)) <= LONGEST_NAME


def _finder(videos: StorePath) -> Callable[[str], str | None]:
    """Return what finds a video below the folder by its path without the ending.

    Each folder is listed once, when it is first asked for; of an object store, all at once.
    """
    if not isinstance(videos, Path):
        return _by_stem(names_below(videos)).get

    @cache
    def inside(folder: PurePosixPath) -> dict[str, str]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return _by_stem(str(folder / entry.name) for entry in os.scandir(videos / folder) if entry.is_file())
        return {}

    return lambda stem: inside(PurePosixPath(stem).parent).get(stem)


def _by_stem(names: Iterable[str]) -> dict[str, str]:
    """Return the videos among some names by their path without the ending; of several, an mp4, else the first."""
    found: dict[str, str] = {}
    for name in sorted(filter(is_video, names), key=lambda name: (not name.endswith(".mp4"), name)):
        found.setdefault(str(PurePosixPath(name).with_suffix("")), name)
    return found


def _spans(path: StorePath) -> dict[str, _Located]:
    """Read duration and annotated spans by question number, by video id."""
    spans = {}
    for clip_id, entry in _object(path).items():
        try:
            duration_s = float(entry["duration"])
            located = {
                qid: tuple((float(start), float(end)) for start, end in pairs)
                for qid, pairs in entry["location"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path.name}: got {str(entry)[:80]} for video {clip_id!r}, expected duration and location, a list of "
                "[start, end] for each question; download it again"
            ) from error
        if not 0 <= duration_s < math.inf:
            raise ValueError(f"{path.name}: got {duration_s} s for video {clip_id!r}, expected 0 or more; correct it")
        for qid, pairs in located.items():
            # An end past the duration, or a start a tenth before 0, occurs in the published files and is harmless.
            if any(not -math.inf < start <= end < math.inf for start, end in pairs):
                raise ValueError(
                    f"{path.name}: got spans {pairs} for question {clip_id}_{qid}, expected start <= end; correct them"
                )
        spans[clip_id] = (duration_s, located)
    return spans


def _rows(path: StorePath) -> list[tuple[str, dict[str, str]]]:
    """Read a CSV with exactly NExT-GQA's columns: for each row where it stands, and its cells by column."""
    try:
        with _existing(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            rows = [(f"{path.name} line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: got {error}, expected a CSV in UTF-8; download it again") from error
    lacking = [column for column in COLUMNS if column not in columns]
    unknown = [column for column in columns if column not in COLUMNS]
    if lacking or unknown or len(columns) > len(COLUMNS):
        raise ValueError(
            f"{path.name} columns: got {unknown} too many and {lacking} missing, expected exactly {','.join(COLUMNS)}; "
            "take the CSV from NExT-GQA, not from NExT-QA"
        )
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(
                f"{where}: got another number of cells than columns, expected {len(COLUMNS)}; put texts with commas in "
                "quotes"
            )
    return rows


def _object(path: StorePath) -> dict[str, Any]:
    value = read_json(_existing(path))
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path.name}: got {str(value)[:40]}, expected an object by video id; download it again")
    return value


def _existing(path: StorePath) -> StorePath:
    if not is_file(path):
        raise FileNotFoundError(
            f"annotations: got no file {path.name} in {path.parent}, expected NExT-GQA's annotation files there; "
            "see docs/nextqa.md"
        )
    return path


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
