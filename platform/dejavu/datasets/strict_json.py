"""JSON from others: what Python's reader would let pass and nothing after it can use is refused here, in one line."""

from __future__ import annotations

import json
import math
from typing import Any

from dejavu.storage.store_path import StorePath

LONGEST_NUMBER = 18
"""Digits of a whole number; the longest in the published files has 11."""


def read_json(path: StorePath) -> Any:
    """Read a file of one value.

    Raises:
        ValueError: As `parse_json`; or it is not UTF-8.
    """
    return parse_json(read_text(path), path.name)


def read_text(path: StorePath) -> str:
    """Read a file as UTF-8.

    Raises:
        ValueError: It is not.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: got {error}, expected JSON in UTF-8; download it again") from error


def parse_json(text: str, where: str) -> Any:
    """Parse one value.

    Raises:
        ValueError: It is no JSON, nested without end, or holds what is no number (NaN, 1e999, thousands of digits) or
            half of a character, which could not be written anywhere.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
        if "\\ud" in text.lower():  # as an escape: UTF-8 itself cannot hold one
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{where}: got values nested without end, expected JSON; download it again") from error
    except ValueError as error:
        raise ValueError(f"{where}: got {error}, expected JSON; download it again") from error
    return value


def _refuse(word: str) -> float:
    raise ValueError(f"the number {word}")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:30]}")
    return number


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
