"""How methods and plain things are drawn, in every picture alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INK, MUTED, FAINT, GOLD = "#1d2530", "#77808c", "#e7eaee", "#f5dfae"


@dataclass(frozen=True, slots=True)
class Style:
    """A method's name for people, its colour and its marker."""

    name: str
    colour: str
    marker: str


STYLES = {
    "original": Style("Original", INK, "*"),
    "reusevit": Style("ReuseViT", "#d1345b", "o"),
    "eventful": Style("Eventful", "#2274c9", "s"),
    "eventful_full": Style("Eventful, all gates", "#0097a7", "P"),
    "cmc": Style("CMC", "#1b8a5a", "^"),
    "diffrate": Style("DiffRate", "#8a4fbf", "D"),
    "tome": Style("ToMe", "#e08300", "v"),
    "frame_skip": Style("FrameSkip", "#7a6a53", "X"),
    "adaptive_skip": Style("AdaptiveSkip", "#5c6b00", "h"),
    "key_frames": Style("KeyFrames", "#5aae00", ">"),
    "low_resolution": Style("LowResolution", "#b0578d", "p"),
    "residualvit": Style("ResidualViT", "#a3561f", "d"),
}
_SPARE = (("#a3333d", "<"), ("#41506b", "H"))


def styles_of(methods: Iterable[str]) -> dict[str, Style]:
    """Give each method its style, known ones first; those unknown here take spare ones in the order of their names."""
    present = set(methods)
    unknown = sorted(present - STYLES.keys())
    spare = {
        method: Style(method.replace("_", " ").capitalize(), *_SPARE[number % len(_SPARE)])
        for number, method in enumerate(unknown)
    }
    return {method: style for method, style in STYLES.items() if method in present} | spare
