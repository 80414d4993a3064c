from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from dejavu.datasets.class_folders import load_class_folders, words_of_class
from dejavu.datasets.splits import GroupBy

SPLIT_FOLDERS = [
    f"{split}/{name}/{number}.mp4" for split in ("train", "val", "test") for name in ("run", "walk") for number in "ab"
]


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_folders_say_split_and_class(tmp_path: Path) -> None:
    dataset, splitting = load_class_folders(put(tmp_path, *SPLIT_FOLDERS, "train/walk/deeper/c.avi", "README.md"))
    assert splitting.given
    assert dataset.splits_given
    kinds = {question.clip_id: (question.split, question.kind) for question in dataset.questions}
    for clip in dataset.clips:
        split, name = Path(clip.path).relative_to(tmp_path).parts[:2]
        assert kinds[clip.clip_id] == (split, name)
    assert {question.answers for question in dataset.questions} == {("run", "walk")}
    assert all(question.answers[question.correct] == question.kind for question in dataset.questions)
    assert Counter(question.split for question in dataset.questions) == {"train": 5, "val": 4, "test": 4}


def test_without_val_it_is_cut_out_of_train(tmp_path: Path) -> None:
    names = [f"train/{kind}/{number:02}x.mp4" for kind in ("run", "walk") for number in range(20)]
    names += ["train/hop/a.mp4", "train/hop/b.mp4"]
    tests = [f"test/{kind}/t.mp4" for kind in ("hop", "run", "walk")]
    dataset, splitting = load_class_folders(put(tmp_path, *names, *tests))
    counts = Counter((question.kind, question.split) for question in dataset.questions)
    assert counts["hop", "train"] == counts["hop", "val"] == 1  # each class is divided by itself
    assert counts["run", "val"] == counts["walk", "val"] == 6
    assert splitting.how.endswith("by folders, val out of each of 3 classes in train/ by the hash of 42 videos")


def test_every_class_is_divided_by_itself(tmp_path: Path) -> None:
    """As UCF101 lays them: groups stay whole, and each class is in every split."""
    names = [
        f"{kind}/v_{kind}_g{group:02}_c{cut:02}.avi"
        for kind, groups in (("Run", 12), ("Walk", 25))
        for group in range(groups)
        for cut in range(3)
    ]
    dataset, splitting = load_class_folders(put(tmp_path, *names, "Rare/a.mp4", "Rare/b.mp4", "Rare/c.mp4"))
    assert not splitting.given
    counts = Counter((question.kind, question.split) for question in dataset.questions)
    assert {counts["Rare", split] for split in ("train", "val", "test")} == {1}
    assert counts["Walk", "train"] == pytest.approx(37.5, abs=2)
    assert counts["Walk", "val"] == pytest.approx(15, abs=2)
    splits_of: dict[str, set[str]] = {}
    for clip in dataset.clips:
        if "_g" in clip.path:
            splits_of.setdefault(Path(clip.path).stem[:-4], set()).add(clip.split)
    assert len(splits_of) == 37
    assert {len(found) for found in splits_of.values()} == {1}


@pytest.mark.parametrize(
    ("names", "group_by", "complaint"),
    [
        (["run/a.mp4", "b.mp4"], "auto", "got 'b.mp4', which lies in no class, expected class/video"),
        ([*SPLIT_FOLDERS, "test/b.mp4"], "auto", "got 'test/b.mp4', which lies in no class, expected split/class"),
        ([*SPLIT_FOLDERS, "more/run/b.mp4"], "auto", "got 'more/run/b.mp4' beside folders of splits"),
        (["run/a.mp4", "run/b.mp4", "run/c.mp4"], "auto", "got 'run' alone in"),
        (["run/a.mp4", *(f"walk/{n}.mp4" for n in "abc")], "auto", "got 1 of class 'run', expected 3 videos or more"),
        ([f"{k}/{n}.mp4" for k in ("run", "walk") for n in "abcd"], "parent", "got no video of 'run' for val"),
        ([*SPLIT_FOLDERS, "val/jump/a.mp4"], "auto", "got 'jump' in val/ and not in train/, expected the same classes"),
        ([*SPLIT_FOLDERS, "train/jump/a.mp4", "test/jump/a.mp4"], "auto", "got 'jump' in train/ and not in val/"),
        ([name for name in SPLIT_FOLDERS if name[:2] != "te"], "auto", "got no video in test/, expected some of each"),
        ([name for name in SPLIT_FOLDERS if name[:2] != "tr"], "auto", "got no video in train/, expected some of each"),
        ([*(n for n in SPLIT_FOLDERS if n[:2] != "va"), "val/a.txt"], "auto", "got no video in val/, expected some of"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, names: list[str], group_by: GroupBy, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        load_class_folders(put(tmp_path, *names), group_by)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


@pytest.mark.parametrize("name", ["ApplyEyeMakeup", "apply_eye-makeup", "apply  eye makeup", "Apply_EyeMakeup"])
def test_a_folder_is_called_by_its_words(name: str) -> None:
    assert words_of_class(name) == "apply eye makeup"


def test_real_clips_lie_as_expected(shared_dir: Path) -> None:
    dataset, splitting = load_class_folders(shared_dir / "data" / "surveillance")
    counts = Counter((question.split, question.kind) for question in dataset.questions)
    assert counts == {
        ("train", "calm"): 50, ("train", "fight"): 49, ("val", "calm"): 18, ("val", "fight"): 19, ("test", "calm"): 26,
        ("test", "fight"): 24,
    }  # fmt: skip
    assert splitting.how == "99 train, 37 val, 50 test, by folders"
