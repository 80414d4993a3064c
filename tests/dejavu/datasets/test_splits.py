"""How a folder's videos are divided: groups stay whole, folders are taken at their word, copies do not leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from dejavu.datasets.splits import SPLITS, GroupBy, Splitting, add_training, group_of, split_folder, twins
from dejavu.records import Clip, Split


def clips(names: Iterable[str]) -> dict[str, Clip]:
    return {name: Clip(clip_id=name.replace("/", "_"), path=f"videos/{name}", split="test") for name in names}


def counts(splitting: Splitting) -> dict[Split, int]:
    found = Counter(clip.split for clip in splitting.clips)
    return {split: found[split] for split in SPLITS}


def test_half_of_the_videos_train_a_fifth_validate_and_the_rest_test() -> None:
    found = split_folder(clips(f"{name}.mp4" for name in "abcdefghijklmnopqrst"))
    assert counts(found) == {"train": 10, "val": 4, "test": 6}
    assert found.how == "10 train, 4 val, 6 test, by the hash of 20 videos"
    assert not found.given


@pytest.mark.parametrize("num_videos", [10, 11, 13, 40])
def test_no_split_is_empty(num_videos: int) -> None:
    assert min(counts(split_folder(clips(f"{index:02}x.mp4" for index in range(num_videos)))).values()) >= 2


def test_a_video_keeps_its_split_when_folders_are_listed_in_another_order() -> None:
    names = [f"{index}film.mp4" for index in range(30)]
    there, back = split_folder(clips(names)), split_folder(clips(reversed(names)))
    assert {clip.path: clip.split for clip in there.clips} == {clip.path: clip.split for clip in back.clips}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("a/film_0012.mp4", "a/film"),
        ("film-part3.mkv", "film"),
        ("film (2).mp4", "film"),
        ("dQw4_000012_000022.mp4", "dQw4"),
        ("v_Archery_g01_c02.avi", "v_Archery_g01"),
        ("holiday.mp4", "holiday"),
        ("007.mp4", "007"),
    ],
)
def test_cuts_of_one_film_share_a_prefix(name: str, group: str) -> None:
    assert group_of(name, "stem-prefix") == group


@pytest.mark.parametrize("group_by", ["auto", "stem-prefix"])
def test_cuts_of_one_film_stay_together(group_by: GroupBy) -> None:
    films = "abcdefghijkl"
    found = split_folder(clips(f"film{film}_{cut:03}.mp4" for film in films for cut in range(5)), group_by)
    splits = {film: {clip.split for clip in found.clips if f"film{film}_" in clip.path} for film in films}
    assert all(len(one) == 1 for one in splits.values())
    assert set.union(*splits.values()) == set(SPLITS)


def test_a_folder_stays_together_where_it_is_asked() -> None:
    names = [f"camera{camera}/{name}.mp4" for camera in range(10) for name in "abc"]
    found = split_folder(clips(names), "parent")
    for camera in range(10):
        assert len({clip.split for clip in found.clips if f"camera{camera}/" in clip.path}) == 1


def test_numbered_videos_are_videos_of_their_own_where_nothing_else_would_be_left() -> None:
    assert counts(split_folder(clips(f"IMG_{index:04}.mov" for index in range(20))))["train"] == 10


def test_too_few_groups_all_test() -> None:
    found = split_folder(clips(f"{index}.mp4" for index in range(9)))
    assert counts(found) == {"train": 0, "val": 0, "test": 9}
    assert found.how == "all 9 videos are test clips: 9 videos, and a split takes 10 or more"


def test_folders_are_taken_at_their_word() -> None:
    found = split_folder(clips(["train/a.mp4", "train/b.mp4", "val/x/c.mp4", "test/d.mp4"]))
    assert [clip.split for clip in found.clips] == ["train", "train", "val", "test"]
    assert found.given


def test_without_val_some_of_train_validates() -> None:
    names = [*(f"train/{index}.mp4" for index in range(14)), "test/a.mp4"]
    assert counts(split_folder(clips(names))) == {"train": 10, "val": 4, "test": 1}


def test_a_video_beside_folders_of_splits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"videos: got 'more/b.mp4' beside folders of splits, expected all videos in"):
        split_folder(clips(["train/a.mp4", "more/b.mp4"]))


def test_nothing_to_test_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got no video in test/"):
        split_folder(clips(["train/a.mp4", "val/b.mp4"]))


def test_other_videos_train_and_all_of_these_are_tested() -> None:
    tested = list(clips(["a.mp4", "b.mp4"]).values())
    found = add_training(tested, clips(["a.mp4", *(f"x{name}.mp4" for name in "cdefghijklmno")]))
    assert counts(found) == {"train": 10, "val": 4, "test": 2}
    assert len({clip.clip_id for clip in found.clips}) == 16
    assert found.given


def test_a_copy_is_left_out_of_what_is_not_tested() -> None:
    splits: dict[str, Split] = {"a": "train", "b": "test", "c": "val", "d": "train"}
    contents = {"a": "1", "b": "1", "c": "2", "d": "2"}
    assert twins(contents, splits, given=False) == {"a": "b", "d": "c"}


def test_a_copy_in_splits_that_were_given_is_refused() -> None:
    with pytest.raises(ValueError, match=r"videos: got 'a' \(train\) and 'b' \(test\) with the same content, one of 1"):
        twins({"a": "1", "b": "1"}, {"a": "train", "b": "test"}, given=True)


def test_copies_within_a_split_may_stay() -> None:
    assert twins({"a": "1", "b": "1"}, {"a": "train", "b": "train"}, given=True) == {}
