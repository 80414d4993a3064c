"""The published NExT-GQA numbers that our points stand beside.

Acc@GQA, as a share of 1, on the 990 videos of the test split with CLIP ViT-L/14 and a TempCLIP NG+ head, against the
FLOP reduction by the artifact's formulas, which is not what its code executes: compare with
`flops_reduction_published`.

Source: the paper's figure (Déjà Vu, VLDB 2025) and its published artifact.
"""

from __future__ import annotations

from dataclasses import replace

from dejavu.records import ParetoPoint


def _point(method: str, setting: str, acc_gqa: float, reduction: float) -> ParetoPoint:
    known = ParetoPoint(method=method, setting=setting, split="test", num_clips=990)
    return replace(known, acc_gqa=acc_gqa, flops_reduction_published=reduction)


PUBLISHED = (
    _point("original", "", 0.157, 1.00),
    _point("reusevit", "R=4", 0.155, 2.53),
    _point("reusevit", "R=8", 0.149, 4.26),
    _point("reusevit", "R=32", 0.139, 6.29),
    _point("reusevit", "R=none", 0.136, 7.14),
    _point("eventful", "k=120", 0.148, 2.05),
    _point("eventful", "k=80", 0.147, 2.94),
    _point("eventful", "k=60", 0.137, 3.76),
    _point("eventful", "k=20", 0.133, 8.54),
    _point("cmc", "", 0.147, 1.15),
    _point("cmc", "", 0.141, 1.68),
    _point("cmc", "", 0.133, 5.46),
    _point("cmc", "", 0.132, 7.82),
    _point("diffrate", "", 0.147, 1.85),  # read off the figure, hence approximate
    _point("diffrate", "", 0.129, 2.06),
    _point("diffrate", "", 0.099, 2.28),
    _point("diffrate", "", 0.092, 2.56),
)
