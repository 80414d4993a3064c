from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from dejavu.records import ParetoPoint
from dejavu.report.frontier import mark_frontier
from dejavu.report.plots import plot_pareto

METHODS = (
    "reusevit",
    "eventful",
    "cmc",
    "diffrate",
    "tome",
    "frame_skip",
    "adaptive_skip",
    "low_resolution",
    "something_new",
)


def some_points(*, published_formulas: bool = False) -> list[ParetoPoint]:
    """Nine methods at six settings that crowd each other near Original."""
    original = ParetoPoint(
        method="original", setting="dense", split="test", num_clips=60, flops_reduction=1.0, acc_gqa=0.88,
        cosine_to_dense=1.0, gflops_per_frame=0.2,
    )  # fmt: skip
    points = [original]
    for number, method in enumerate(METHODS):
        for step in range(6):
            reduction = 1.1 + step * (0.3 + 0.1 * number)
            loss = 0.002 * (reduction - 1) ** 2 * (number + 1)
            points.append(
                replace(
                    original, method=method, setting=f"s={number}{step}", flops_reduction=reduction,
                    acc_gqa=0.88 - loss, cosine_to_dense=1 - loss, acc_gqa_loss_ci_low=-loss - 0.01,
                    acc_gqa_loss_ci_high=-loss + 0.01, trained=False if method == "reusevit" else None,
                    flops_reduction_published=reduction if published_formulas else None,
                )
            )  # fmt: skip
    return points


def words(svg: Path) -> str:
    """Return the texts of a picture: matplotlib keeps them as comments, and our labels as names of their shapes."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    nodes = list(ElementTree.parse(svg, parser).iter())
    comments = [(node.text or "").strip() for node in nodes if not isinstance(node.tag, str)]
    labels = [
        name.removeprefix("label:").replace("_", " ") for node in nodes if (name := node.get("id", ""))[:6] == "label:"
    ]
    return " | ".join(comments + labels)


def test_every_method_is_named_where_it_is_drawn(tmp_path: Path) -> None:
    points = some_points()
    plot_pareto(points, tmp_path / "p.png", tmp_path / "p.svg", title="A title")
    picture = imread(tmp_path / "p.png")
    assert picture.shape[0] > 800
    assert np.ptp(picture) > 0.5
    text = words(tmp_path / "p.svg")
    for name in (
        "A title",
        "ReuseViT (untrained)",
        "Eventful",
        "CMC",
        "DiffRate",
        "ToMe",
        "FrameSkip",
        "AdaptiveSkip",
        "LowResolution",
        "Something new",
    ):
        assert name in text
    assert "Original 88.0 %" in text
    assert "60 test clips" in text
    assert "Original: 0.2 GFLOPs a frame" in text
    assert "published" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "p.svg"]


def test_the_settings_of_the_frontier_are_written_and_no_others(tmp_path: Path) -> None:
    points = some_points()
    plot_pareto(points, tmp_path / "p.png", tmp_path / "p.svg")
    text = words(tmp_path / "p.svg")
    marked = mark_frontier(points)
    away = [p.setting for p in marked if not p.on_frontier]
    lonely = [p.setting for p in marked if p.on_frontier and (p.flops_reduction or 0) > 2.5]
    assert away
    assert lonely
    assert not any(setting in text for setting in away)
    assert all(setting in text for setting in lonely)


def timed(points: list[ParetoPoint]) -> list[ParetoPoint]:
    """Each setting twice as slow as its FLOPs promise, but for frame skipping, which is as fast."""
    return [
        replace(
            point,
            speedup=(point.flops_reduction or 0) / (1 if point.method in ("frame_skip", "original") else 2),
            ms_per_frame=12.3,
            timed_speedup=2.0,
        )
        for point in points
    ]


def test_the_clock_has_its_own_panel_and_frontier(tmp_path: Path) -> None:
    plot_pareto(timed(some_points()), tmp_path / "p.png", tmp_path / "p.svg")
    text = words(tmp_path / "p.svg")
    assert "Speed-up by the clock (1×: 24.6 ms a frame)  →  faster" in text
    assert "Reduction of executed FLOPs (Original: 0.2 GFLOPs a frame)  →  cheaper" in text
    assert text.index("Speed-up") < text.index("Reduction")
    assert text.count("Original 88.0 %") == 2
    settings = [word for word in text.split(" | ") if word.startswith("s=")]
    by_clock = mark_frontier(timed(some_points()), "speedup")
    beyond = [p.setting for p in by_clock if p.on_frontier and (p.speedup or 0) > 2.5]
    assert beyond
    assert all(setting in settings for setting in beyond)
    assert [p.on_frontier for p in by_clock] != [p.on_frontier for p in mark_frontier(some_points())]


def test_a_clock_that_only_original_has_is_no_panel(tmp_path: Path) -> None:
    original, *others = some_points()
    plot_pareto([replace(original, speedup=1.0), *others], tmp_path / "p.png", tmp_path / "p.svg")
    assert "by the clock" not in words(tmp_path / "p.svg")


def test_long_words_are_broken_where_the_picture_ends(tmp_path: Path) -> None:
    points = [replace(point, acc_gqa=None, agreement=point.cosine_to_dense) for point in some_points()]
    plot_pareto(points, tmp_path / "p.png", tmp_path / "p.svg")
    picture = imread(tmp_path / "p.png")
    assert (picture[:, -8:, :3] == 1).all()  # nothing runs into the right edge
    text = words(tmp_path / "p.svg")
    assert "Agreement of neighbours: of a frame's ten nearest frames of other clips" in text
    assert "interval of the difference to Original" in text


def test_another_quality_than_the_strictest_is_drawn_where_asked(tmp_path: Path) -> None:
    points = [replace(point, agreement=1 - 2 * (0.88 - (point.acc_gqa or 0))) for point in some_points()]
    plot_pareto(points, tmp_path / "p.png", tmp_path / "p.svg", quality="agreement")
    text = words(tmp_path / "p.svg")
    assert "Agreement of neighbours" in text
    assert "Original 100.0 %" in text


def test_published_points_stand_beside_ours_by_their_own_formulas(tmp_path: Path) -> None:
    plot_pareto(some_points(published_formulas=True), tmp_path / "p.png", tmp_path / "p.svg", published=True)
    text = words(tmp_path / "p.svg")
    assert "Reduction by the artifact's FLOP formulas" in text
    assert text.count("ReuseViT, published") == 1
    plot_pareto(some_points(), tmp_path / "q.png", tmp_path / "q.svg", published=True)
    text = words(tmp_path / "q.svg")
    assert "artifact's FLOP formulas" not in text
    assert "ReuseViT, published" in text


def test_without_answers_fidelity_is_drawn_and_nothing_published(tmp_path: Path) -> None:
    points = [replace(point, acc_gqa=None) for point in some_points()]
    plot_pareto(points, tmp_path / "p.png", tmp_path / "p.svg", published=True)
    text = words(tmp_path / "p.svg")
    assert "Cosine to Original: how close frame embeddings stay to Original" in text
    assert "published" not in text


def test_original_alone_is_a_plot(tmp_path: Path) -> None:
    plot_pareto(some_points()[:1], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_a_plot_without_its_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0 settings of 'original'"):
        plot_pareto(some_points()[1:], tmp_path / "p.png")
    with pytest.raises(ValueError, match="no flops_reduction for 'original'"):
        plot_pareto([replace(some_points()[0], flops_reduction=None)], tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


def test_where_all_settings_are_alike_the_axis_is_read_in_per_cent(tmp_path: Path) -> None:
    points = [replace(point, acc_gqa=1.0, acc_gqa_loss_ci_low=0.0, acc_gqa_loss_ci_high=0.0) for point in some_points()]
    plot_pareto(points, tmp_path / "p.png", tmp_path / "p.svg")
    text = words(tmp_path / "p.svg").split(" | ")
    assert {"99.6", "100.0", "100.4"} <= set(text)  # a point of room, and no offset
