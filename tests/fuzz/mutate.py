"""Damage to a file, drawn from a number: the same number gives the same damage."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

EDGE_BYTES = 2048
"""Half of all damage falls so near to the start or the end, where containers keep what they know of themselves."""
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xEA60, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (
    *("NaN", "-Infinity", "1e999", "-1", "0", "99999999999999999999", "9" * 5000, "null", "true", "[]", "{}", '""'),
    *("[" * 2000, '{"a":' * 2000, '"', "\\", '\\ud800"', '\\u0000"', ",", "\n", "\r", "\0", "\ufeff", "../../x", "ß"),
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A damaged file, and how it came to be."""

    kinds: tuple[str, ...]
    content: bytes


def mutate(content: bytes, key: str, *, is_text: bool = False) -> Mutation:
    """Damage a file in one to three ways.

    Args:
        content: The whole file, 2 bytes or more.
        key: Names the draw.
        is_text: Damage words too, not only bytes.
    """
    rng = random.Random(key)
    known = {**BYTE_DAMAGE, **TEXT_DAMAGE}
    drawn = [rng.choice((BYTE_DAMAGE, TEXT_DAMAGE, TEXT_DAMAGE) if is_text else (BYTE_DAMAGE,)) for _ in range(3)]
    kinds = tuple(rng.choice(sorted(group)) for group in drawn[: rng.choice((1, 1, 1, 2, 3))])
    for kind in kinds:
        if len(content) >= 2:
            content = known[kind](content, rng)
    return Mutation(kinds, content)


def _place(content: bytes, rng: random.Random) -> int:
    if rng.random() < 0.5:
        return rng.randrange(len(content))
    near = rng.randrange(min(EDGE_BYTES, len(content)))
    return near if rng.random() < 0.5 else len(content) - 1 - near


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(content, rng)
    return start, min(len(content), start + rng.choice((1, 4, 16, 188, 1024, max(1, len(content) // 8))))


def _over(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new[: len(content) - start] + content[start + len(new) :]


def _flip_bits(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 32))):
        damaged[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _zero_block(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return _over(content, start, bytes(end - start))


def _random_block(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return _over(content, start, rng.randbytes(end - start))


def _insert(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + rng.randbytes(rng.choice((1, 3, 64, 500))) + content[start:]


def _drop(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 7)) + content[end:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    cuts = sorted(_place(content, rng) for _ in range(3))
    return content[: cuts[0]] + content[cuts[1] : cuts[2]] + content[cuts[0] : cuts[1]] + content[cuts[2] :]


def _set_number(content: bytes, rng: random.Random) -> bytes:
    """Write a number that a header would not hold, in either byte order."""
    size = rng.choice((2, 4, 8))
    number = rng.choice(NUMBERS) & (256**size - 1)
    return _over(content, _place(content, rng), number.to_bytes(size, rng.choice(("big", "little"))))


def _insert_word(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.choice(WORDS).encode() + content[start:]


def _set_value(content: bytes, rng: random.Random) -> bytes:
    """Put a word in the place of what stands between two separators."""
    places = [index for index, byte in enumerate(content) if byte in b",:[]{}\n"]
    if len(places) < 2:
        return content
    first = rng.randrange(len(places) - 1)
    return content[: places[first] + 1] + rng.choice(WORDS).encode() + content[places[first + 1] :]


def _repeat_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    return b"".join([*lines[: index + 1], lines[rng.randrange(len(lines))], *lines[index + 1 :]])


def _drop_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


Damage = Callable[[bytes, random.Random], bytes]
BYTE_DAMAGE: dict[str, Damage] = {
    "flip bits": _flip_bits,
    "truncate": _truncate,
    "zero block": _zero_block,
    "random block": _random_block,
    "insert": _insert,
    "drop": _drop,
    "repeat": _repeat,
    "swap": _swap,
    "set number": _set_number,
}
TEXT_DAMAGE: dict[str, Damage] = {
    "insert word": _insert_word,
    "set value": _set_value,
    "repeat line": _repeat_line,
    "drop line": _drop_line,
}
