"""How2QA's multiple-choice questions about clips of a minute.

`how2QA_<split>_release.csv` has no header and seven cells a line: the video, `[start:end]` in its seconds, three wrong
answers, the question, the right answer. `how2qa_<split>_release.jsonl` has an object a line: `qid`, `vid_name`, `ts`,
`q`, `a0` to `a3`, `answer_idx`. Splits are train, val and test_public.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dejavu.datasets.next_qa import check_id
from dejavu.datasets.strict_json import parse_json, read_text
from dejavu.datasets.video_folder import find_named_videos
from dejavu.records import Clip, Dataset, Question, Split
from dejavu.storage.store_path import StorePath, is_file

SPLIT_NAMES: dict[Split, str] = {"train": "train", "val": "val", "test": "test_public"}
CELLS = ("video", "[start:end]", "wrong answer", "wrong answer", "wrong answer", "question", "right answer")
KEYS = ("qid", "vid_name", "q", "a0", "a1", "a2", "a3", "answer_idx")
CLIP_S = 60
"""The published clips are whole minutes, named `<video>_<start>_<end>`."""
KIND = "MC"


def load_how2qa(videos: StorePath, annotations: StorePath, *, splits: Sequence[Split] = ("val", "test")) -> Dataset:
    """Join questions with the videos that are there.

    Args:
        videos: Folder in which, at any depth, lie the clips (`<video>_60_120.mp4`); where a clip is not there but its
            whole video is (`<video>.mp4`), the question is asked of the whole.
        annotations: Folder of the files above, CSV or JSONL. Where there is but one of val and test_public, it is the
            test split, and nothing chooses.
        splits: Those to load.

    Returns:
        Clips in the order of the questions; those that are not there in `missing`.

    Raises:
        FileNotFoundError: A folder or the annotations are missing.
        ValueError: An annotation file does not read as expected, or has a question twice.
    """
    by_split = load_questions(annotations, splits)
    paths = find_named_videos(videos)
    clips: dict[str, Clip] = {}
    questions: list[Question] = []
    missing: dict[str, None] = {}  # a set that keeps the order
    for question in by_split:
        name = _found(question.clip_id, paths)
        if name is None:
            missing[question.clip_id] = None
            continue
        if name in clips and clips[name].split != question.split:
            raise ValueError(
                f"{question.question_id}: got video {name!r} in {clips[name].split} and {question.split}, expected "
                "each in one split; cut it into its clips of a minute, or give one annotation file alone"
            )
        clips[name] = Clip(clip_id=name, path=paths[name], split=question.split)
        questions.append(replace(question, clip_id=name))
    if not clips:
        raise ValueError(
            f"videos: got none of the {len(missing)} annotated clips in {videos}, expected files such as "
            f"{next(iter(missing), 'NOuQuofjk44_0_60')}.mp4; check --videos"
        )
    return Dataset(name="how2qa", clips=tuple(clips.values()), questions=tuple(questions), missing=tuple(missing))


def load_questions(annotations: StorePath, splits: Sequence[Split] = ("val", "test")) -> tuple[Question, ...]:
    """Read the questions of some splits without looking for videos.

    Raises:
        FileNotFoundError: There is no annotation file of these splits.
        ValueError: One does not read as expected.
    """
    files = {split: path for split in SPLIT_NAMES if (path := _file(annotations, SPLIT_NAMES[split])) is not None}
    if "test" not in files and "val" in files:
        files["test"] = files.pop("val")
    wanted = [split for split in splits if split in files]
    if "test" not in files or not wanted:
        raise FileNotFoundError(
            f"annotations: got neither how2QA_test_public_release.csv nor how2QA_val_release.csv (nor .jsonl) in "
            f"{annotations}, expected one of them; see docs/msrvtt.md"
        )
    found: list[Question] = []
    for split in wanted:
        path = files[split]
        found += _read_csv(path, split) if path.suffix == ".csv" else _read_jsonl(path, split)
    return tuple(found)


def _file(annotations: StorePath, name: str) -> StorePath | None:
    candidates = [annotations / f"how2QA_{name}_release.csv", annotations / f"how2qa_{name}_release.jsonl"]
    return next((path for path in candidates if is_file(path)), None)


def _found(clip_id: str, paths: Mapping[str, str]) -> str | None:
    whole = re.sub(r"_\d+_\d+$", "", clip_id)
    return next((name for name in (clip_id, whole) if name in paths), None)


def _question(name: str, clip_id: str, split: Split, texts: Sequence[str], correct: int) -> Question:
    """Build a question of `texts`: the question, then its answers."""
    return Question(
        question_id=name,
        clip_id=clip_id,
        split=split,
        kind=KIND,
        text=texts[0],
        answers=tuple(texts[1:]),
        correct=correct,
    )


def _check(where: str, clip_id: str, texts: Sequence[str]) -> None:
    check_id(where, clip_id)
    if not all(text.strip() for text in texts):
        raise ValueError(f"{where}: got an empty question or answer, expected texts; correct or remove the line")


def _read_csv(path: StorePath, split: Split) -> Iterable[Question]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, tuple(row)) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name}: got {error}, expected a CSV in UTF-8; download it again") from error
    seen: dict[tuple[str, ...], int] = {}
    for line, row in rows:
        where = f"{path.name} line {line}"
        start_s = _start_s(row[1]) if len(row) == len(CELLS) else None
        if start_s is None:
            raise ValueError(
                f"{where}: got {len(row)} cells, {','.join(row)[:60]!r}, expected {len(CELLS)}: {','.join(CELLS)}; "
                "remove a header, put texts with commas in quotes"
            )
        if row in seen:
            raise ValueError(f"{where}: got line {seen[row]} again, expected each question once; remove one of them")
        seen[row] = line
        minute = int(start_s // CLIP_S) * CLIP_S
        clip_id = f"{row[0]}_{minute}_{minute + CLIP_S}"
        # The right answer comes last: of equal scores the first wins, so that a tie is no luck.
        texts = (row[5], row[2], row[3], row[4], row[6])
        _check(where, clip_id, texts)
        yield _question(f"{path.stem}:{line}", clip_id, split, texts, 3)


def _start_s(text: str) -> float | None:
    """Read the start of `[7.2:18.0]`."""
    match = re.fullmatch(r"\[(\d{1,7}(?:\.\d+)?):\d{1,7}(?:\.\d+)?\]", text.strip())
    return float(match.group(1)) if match else None


def _read_jsonl(path: StorePath, split: Split) -> Iterable[Question]:
    seen: set[str] = set()
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{path.name} line {line}"
        row = parse_json(text, where)
        try:
            texts = (str(row["q"]), *(str(row[f"a{index}"]) for index in range(4)))
            name, clip_id, correct = str(row["qid"]), str(row["vid_name"]), int(row["answer_idx"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: got {type(error).__name__} {error}, expected an object with {', '.join(KEYS)}; take a "
                "split that is published with its answers"
            ) from error
        if name in seen or not 0 <= correct < 4:
            raise ValueError(
                f"{where}: got question {name!r}{' again' if name in seen else ''} with answer {correct}, expected "
                "each once, with an answer 0..3; correct the line"
            )
        seen.add(name)
        _check(where, clip_id, texts)
        yield _question(f"{path.stem}:{name}", clip_id, split, texts, correct)
