"""How methods and plain things are drawn, in every picture alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INK, MUTED, FAINT, GOLD = "#1d2530", "#77808c", "#e7eaee", "#f5dfae"


@dataclass(frozen=True, slots=True)
class Look:
    """A method's name for people, its colour and its marker."""

    name: str
    colour: str
    marker: str


LOOKS = {
    "original": Look("Original", INK, "*"),
    "reusevit": Look("ReuseViT", "#d1345b", "o"),
    "eventful": Look("Eventful", "#2274c9", "s"),
    "eventful_full": Look("Eventful, all gates", "#0097a7", "P"),
    "cmc": Look("CMC", "#1b8a5a", "^"),
    "diffrate": Look("DiffRate", "#8a4fbf", "D"),
    "tome": Look("ToMe", "#e08300", "v"),
    "frame_skip": Look("FrameSkip", "#7a6a53", "X"),
    "adaptive_skip": Look("AdaptiveSkip", "#5c6b00", "h"),
    "low_resolution": Look("LowResolution", "#b0578d", "p"),
    "residualvit": Look("ResidualViT", "#a3561f", "d"),
}
_SPARE = (("#a3333d", "<"), ("#41506b", ">"))


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """Give each method its look, known ones first; those unknown here take spare ones in the order of their names."""
    present = set(methods)
    unknown = sorted(present - LOOKS.keys())
    spare = {
        method: Look(method.replace("_", " ").capitalize(), *_SPARE[number % len(_SPARE)])
        for number, method in enumerate(unknown)
    }
    return {method: look for method, look in LOOKS.items() if method in present} | spare
