from __future__ import annotations

from pathlib import Path

import pytest

from dejavu.datasets.strict_json import parse_json, read_json


def test_what_people_write_is_read() -> None:
    value = parse_json('{"é\\ud83d\\ude00": [1, -2.5, 1e3, true, null]}', "x")
    assert value == {"é\U0001f600": [1, -2.5, 1000.0, True, None]}


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "Expecting value"),
        ('{"a": NaN}', "the number NaN"),
        ("[1, -Infinity]", "the number -Infinity"),
        ("[1e999]", "the number 1e999"),
        ("9" * 5000, "a number of 5000 digits"),
        ("[" * 100_000, "nested without end"),
        ('"\\ud800"', "surrogates not allowed"),
    ],
)
def test_what_nothing_can_use_is_refused_in_one_line(text: str, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^here: got .*{got}.*, expected JSON; download it again$") as raised:
        parse_json(text, "here")
    assert type(raised.value) is ValueError
    assert "\n" not in str(raised.value)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes('"é"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^x.json: got .*, expected JSON in UTF-8; ") as raised:
        read_json(tmp_path / "x.json")
    assert type(raised.value) is ValueError
