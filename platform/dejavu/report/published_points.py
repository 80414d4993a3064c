"""The published NExT-GQA numbers that our points stand beside.

Acc@GQA on the test split with CLIP ViT-L/14 and a TempCLIP NG+ head, against the FLOP reduction by the artifact's
formulas, which is not what its code executes: compare with `flops_reduction_published`.

Source: the paper's figure (Déjà Vu, VLDB 2025) and its published artifact.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedPoint:
    """One point of the published figure."""

    method: str
    setting: str
    acc_gqa: float
    """A share of 1."""
    flops_reduction_published: float
    read_off: bool = False
    """Read off the figure, hence approximate, rather than printed."""


PUBLISHED: tuple[PublishedPoint, ...] = (
    PublishedPoint("original", "", 0.157, 1.00),
    PublishedPoint("reusevit", "R=4", 0.155, 2.53),
    PublishedPoint("reusevit", "R=8", 0.149, 4.26),
    PublishedPoint("reusevit", "R=32", 0.139, 6.29),
    PublishedPoint("reusevit", "R=none", 0.136, 7.14),
    PublishedPoint("eventful", "k=120", 0.148, 2.05),
    PublishedPoint("eventful", "k=80", 0.147, 2.94),
    PublishedPoint("eventful", "k=60", 0.137, 3.76),
    PublishedPoint("eventful", "k=20", 0.133, 8.54),
    PublishedPoint("cmc", "", 0.147, 1.15),
    PublishedPoint("cmc", "", 0.141, 1.68),
    PublishedPoint("cmc", "", 0.133, 5.46),
    PublishedPoint("cmc", "", 0.132, 7.82),
    PublishedPoint("diffrate", "", 0.147, 1.85, read_off=True),
    PublishedPoint("diffrate", "", 0.129, 2.06),
    PublishedPoint("diffrate", "", 0.099, 2.28),
    PublishedPoint("diffrate", "", 0.092, 2.56),
)
