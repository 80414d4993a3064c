"""Drawn clips are as long as was asked, and their annotations read as NExT-GQA's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavu.datasets.next_qa import load_frame_times, load_next_qa
from dejavu.rehearsal.footage import ASKED, WORDS, FootageConfig, draw_footage
from dejavu.video.plain import decode_plain

SMALL = FootageConfig(num_train=2, num_val=1, num_test=3, min_s=0.5, max_s=2.5, width_px=96, height_px=64, fps=4)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("footage")
    draw_footage(root, SMALL)
    return root


def test_clips_of_a_split_differ_in_length(drawn: Path) -> None:
    data = load_next_qa(drawn / "videos", drawn / "annotations", splits=("train", "val", "test"))
    assert data.missing == ()
    frames = {
        split: [len(list(decode_plain(Path(c.path)))) for c in data.clips if c.split == split]
        for split in ("train", "val", "test")
    }
    assert frames == {"train": [2, 10], "val": [6], "test": [2, 6, 10]}


def test_questions_and_spans_read_as_annotated(drawn: Path) -> None:
    data = load_next_qa(drawn / "videos", drawn / "annotations", splits=("train", "val", "test"))
    assert len(data.questions) == 6 * len(data.clips)
    for question in data.questions:
        ((start, end),) = question.spans_s
        assert 0 <= start <= end <= question.duration_s + 0.05
        assert len(set(question.answers)) == 5
    times = load_frame_times(drawn / "annotations", "test")
    assert {len(values) for values in times.values()} == {32}


def test_every_word_is_known_to_the_tokenizer(drawn: Path) -> None:
    data = load_next_qa(drawn / "videos", drawn / "annotations")
    said = {word for question in data.questions for text in (question.text, *question.answers) for word in text.split()}
    assert said <= set(WORDS)
    assert len(WORDS) == len(set(WORDS))
    assert "{}" in ASKED


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    draw_footage(tmp_path, SMALL)
    for path in sorted(drawn.rglob("*.*")):
        assert (tmp_path / path.relative_to(drawn)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_val": 0}, "clips: got"),
        ({"min_s": 9.0, "max_s": 8.0}, r"clips' lengths: got 9\.\.8 s"),
        ({"width_px": 101}, "clips' size: got 101x360 px"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FootageConfig(**values)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
