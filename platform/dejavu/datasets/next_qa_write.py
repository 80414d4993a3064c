"""Write annotations in NExT-GQA's own file formats, for videos that are drawn here or come from elsewhere.

    <folder>/{train,val,test}.csv, gsub_<split>.json, frame2time_<split>.json, map_vid_vidorID.json

`next_qa.load_next_qa` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dejavu.datasets.next_qa import CHOICES, COLUMNS, ID_MAP
from dejavu.records import Split
from dejavu.storage.store import write_csv, write_json
from dejavu.storage.store_path import StorePath

NUM_FRAME_TIMES = 32
"""NExT-GQA's frame2time holds the times of 32 frames spread evenly over each video."""

Known = dict[str, Any]
"""Of one video, as plain JSON types: frame_count, width, height, fps, duration (s), questions (type, text, answer and
the five answers of each) and spans ([start, end] in seconds of each question)."""


def write_next_qa(folder: StorePath, places: Mapping[str, str], known: Mapping[Split, Mapping[str, Known]]) -> None:
    """Write all files; `places` are below the folder of videos, by video id and without `.mp4`."""
    write_json(folder / ID_MAP, dict(places))
    for split, videos in known.items():
        write_csv(folder / f"{split}.csv", COLUMNS, _rows(videos))
        write_json(folder / f"gsub_{split}.json", {video_id: _located(video) for video_id, video in videos.items()})
        times = {video_id: _frame_times(video) for video_id, video in videos.items()}
        write_json(folder / f"frame2time_{split}.json", times)


def _rows(videos: Mapping[str, Known]) -> Iterator[list[object]]:
    for video_id, known in videos.items():
        sizes = {name: known[name] for name in ("frame_count", "width", "height")}
        for qid, question in enumerate(known["questions"]):
            choices = dict(zip(CHOICES, question["answers"], strict=True))
            asked = {"question": question["text"], "answer": question["answer"], "qid": qid, "type": question["type"]}
            row = {"video_id": video_id, **sizes, **asked, **choices}
            yield [row[column] for column in COLUMNS]


def _located(known: Known) -> dict[str, Any]:
    spans = {str(qid): seen for qid, seen in enumerate(known["spans"])}
    return {"duration": known["duration"], "location": spans, "fps": known["fps"]}


def _frame_times(known: Known) -> list[float]:
    period_s = known["duration"] / NUM_FRAME_TIMES
    return [round((index + 0.5) * period_s, 1) for index in range(NUM_FRAME_TIMES)]
