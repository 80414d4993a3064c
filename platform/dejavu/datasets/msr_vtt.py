"""MSR-VTT's captions, for retrieval.

`MSRVTT_JSFUSION_test.csv` is the 1k-A test split: `key,vid_key,video_id,sentence`, a caption a line.
`MSRVTT_data.json` (or `train_val_videodatainfo.json` and `test_videodatainfo.json`) lists `videos` with their split and
`sentences` with their video: the validation captions, and the full test split where there is no CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence

from dejavu.datasets.next_qa import check_id
from dejavu.datasets.strict_json import read_json
from dejavu.datasets.video_folder import find_named_videos
from dejavu.records import CAPTION, Clip, Dataset, Question, Split
from dejavu.storage.store_path import StorePath, is_file, listed

TEST_CSV = "MSRVTT_JSFUSION_test.csv"
COLUMNS = ("key", "vid_key", "video_id", "sentence")
WHOLE_JSON = "MSRVTT_data.json"
SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}


def load_msr_vtt(videos: StorePath, annotations: StorePath, *, splits: Sequence[Split] = ("val", "test")) -> Dataset:
    """Join captions with the videos that are there.

    Args:
        videos: Folder in which, at any depth, the videos are `<video_id>.mp4` (or another ending).
        annotations: Folder of the files above; without a JSON file there is no validation split.
        splits: Those to load.

    Returns:
        A caption is a question with one answer, itself. Clips in the order of the captions; ids of videos that are
        not there in `missing`.

    Raises:
        FileNotFoundError: A folder or the annotations are missing.
        ValueError: An annotation file does not read as expected, or names something twice.
    """
    captions = load_captions(annotations)
    paths = find_named_videos(videos)
    wanted = [caption for split in splits for caption in captions if caption.split == split]
    missing = tuple(dict.fromkeys(one.clip_id for one in wanted if one.clip_id not in paths))
    questions = tuple(one for one in wanted if one.clip_id in paths)
    clips = {one.clip_id: Clip(clip_id=one.clip_id, path=paths[one.clip_id], split=one.split) for one in questions}
    if not clips:
        raise ValueError(
            f"videos: got none of the {len(missing)} annotated videos in {videos}, expected files such as "
            f"{next(iter(missing), 'video0')}.mp4; check --videos"
        )
    return Dataset(name="msr_vtt", clips=tuple(clips.values()), questions=questions, missing=missing)


def load_captions(annotations: StorePath) -> tuple[Question, ...]:
    """Read all captions without looking for videos; the 1k-A test split takes the full one's place.

    Raises:
        FileNotFoundError: There is neither the CSV nor a JSON file.
        ValueError: One does not read as expected.
    """
    test_path = annotations / TEST_CSV
    infos = [annotations / WHOLE_JSON] if is_file(annotations / WHOLE_JSON) else []
    infos = infos or listed(annotations, "*videodatainfo*.json")
    has_test = is_file(test_path)
    if not has_test and not infos:
        raise FileNotFoundError(
            f"annotations: got neither {TEST_CSV} nor {WHOLE_JSON} nor *videodatainfo*.json in {annotations}, expected "
            "one of them; see docs/msrvtt.md"
        )
    found = list(_read_csv(test_path)) if has_test else []
    tested = {caption.clip_id for caption in found}
    for caption in (caption for path in infos for caption in _read_json(path)):
        if not (found and tested and (caption.split == "test" or caption.clip_id in tested)):
            found.append(caption)
    seen: set[str] = set()
    for caption in found:
        if caption.question_id in seen:
            raise ValueError(
                f"captions: got {caption.question_id!r} twice in {annotations}, expected each once; remove one of them"
            )
        seen.add(caption.question_id)
    return tuple(found)


def _caption(where: str, name: str, clip_id: str, split: Split, text: str) -> Question:
    check_id(where, clip_id)
    if not text.strip():
        raise ValueError(f"{where}: got an empty caption, expected a sentence; correct or remove it")
    return Question(question_id=name, clip_id=clip_id, split=split, kind=CAPTION, text=text, answers=(text,), correct=0)


def _read_csv(path: StorePath) -> Iterable[Question]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            rows = [(f"{path.name} line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: got {error}, expected a CSV in UTF-8; download it again") from error
    if sorted(columns) != sorted(COLUMNS):
        raise ValueError(
            f"{path.name} columns: got {' '.join(','.join(columns).split())}, expected exactly {','.join(COLUMNS)}; "
            "download it again"
        )
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{where}: got another number of cells than columns, expected 4; put texts in quotes")
        yield _caption(where, row["key"], row["video_id"], "test", row["sentence"])


def _read_json(path: StorePath) -> Iterable[Question]:
    try:
        info = read_json(path)
        videos = [(str(one["video_id"]), str(one["split"])) for one in info["videos"]]
        sentences = [
            (str(one["video_id"]), _whole(path, one["sen_id"]), str(one["caption"])) for one in info["sentences"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name}: got no {error} where it belongs, expected videos (video_id, split) and sentences (video_id, "
            "sen_id, caption); download it again"
        ) from error
    split_of = _split_of(path, videos)
    for clip_id, number, text in sentences:
        if clip_id not in split_of:
            raise ValueError(
                f"{path.name}: got a caption of {clip_id!r}, expected one of its {len(split_of)} videos; download it "
                "again"
            )
        yield _caption(path.name, f"{clip_id}_{number}", clip_id, split_of[clip_id], text)


def _whole(path: StorePath, number: object) -> int:
    if not isinstance(number, int):
        raise ValueError(f"{path.name}: got sen_id {str(number)[:30]!r}, expected a whole number; download it again")
    return number


def _split_of(path: StorePath, videos: Iterable[tuple[str, str]]) -> dict[str, Split]:
    split_of: dict[str, Split] = {}
    for name, split in videos:
        if name in split_of or split not in SPLITS:
            raise ValueError(
                f"{path.name}: got video {name!r} of split {split!r}{' again' if name in split_of else ''}, expected "
                f"each once, in one of {', '.join(SPLITS)}; correct the file"
            )
        split_of[name] = SPLITS[split]
    return split_of
