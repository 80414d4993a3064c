"""Each method looks like itself alone."""

from __future__ import annotations

from dejavu.report.style import _SPARE, STYLES, styles_of
from reuse_models.registry import METHODS


def test_every_method_has_a_style_of_its_own() -> None:
    assert STYLES.keys() == METHODS.keys()
    looks = [(style.colour, style.marker) for style in STYLES.values()] + list(_SPARE)
    for values in (*zip(*looks, strict=True), [style.name for style in STYLES.values()]):
        assert len(set(values)) == len(values)


def test_a_method_of_another_version_takes_a_spare_style() -> None:
    found = styles_of(["tome", "token_bank"])
    assert [style.name for style in found.values()] == ["ToMe", "Token bank"]
    assert (found["token_bank"].colour, found["token_bank"].marker) == _SPARE[0]
