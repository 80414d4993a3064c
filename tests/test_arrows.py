"""The levels of the design: each imports only from below, and each library has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [
    ("reuse_models",),
    ("dejavu.records", "dejavu.place", "dejavu.working_directory", "dejavu.code_version"),
    ("dejavu.events", "dejavu.given_place"),
    ("dejavu.video", "dejavu.backbones", "dejavu.store", "dejavu.apart", "dejavu.cluster", "dejavu.spot_fallback"),
    ("dejavu.status", "dejavu.results_folder"),
    ("dejavu.setting", "dejavu.frontier", "dejavu.pareto_csv", "dejavu.published_points", "dejavu.looks"),
    ("dejavu.label_placement", "dejavu.pareto_view", "dejavu.contact_sheet"),
    ("dejavu.datasets", "dejavu.tasks", "dejavu.plots", "dejavu.reuse_map"),
    ("dejavu.tracking", "dejavu.addon_model"),
    ("dejavu.equal_flops", "dejavu.search"),
    ("dejavu.headline", "dejavu.breakdown", "dejavu.drift", "dejavu.reuse_layers", "dejavu.reuse_stream"),
    ("dejavu.overlay",),
    ("dejavu.report", "dejavu.comparison"),
    ("dejavu.nextgqa_golden", "dejavu.temp_clip_golden"),
    ("dejavu.stages",),
    ("dejavu.ablation",),
    ("tune_spaces",),
    ("dejavu.experiment",),
    ("dejavu.rehearsal",),
    ("jobs",),
]
HOMES = {
    "ray": ("dejavu.cluster", "dejavu.spot_fallback", "dejavu.stages", "tune_spaces", "jobs"),
    "mlflow": ("dejavu.tracking", "dejavu.addon_model"),
    "av": ("dejavu.video",),
}


def modules() -> dict[str, Path]:
    """Return every module of ours by its dotted name."""
    found = {}
    for top, folder in (
        ("dejavu", "platform/dejavu"),
        ("reuse_models", "reuse_models"),
        ("tune_spaces", "tune_spaces"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([top, *(part for part in parts if part != "__init__")])] = path
    return found | {f"jobs.{path.stem}": path for path in (ROOT / "jobs").glob("*.py")}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(name: str) -> int | None:
    """Return the level of a module, or None for one that is not ours."""
    fits = [
        (len(prefix), index)
        for index, prefixes in enumerate(LEVELS)
        for prefix in prefixes
        if name == prefix or name.startswith(prefix + ".")
    ]
    return max(fits)[1] if fits else None


def test_every_module_has_a_level() -> None:
    homeless = [name for name in modules() if level(name) is None and name != "dejavu"]
    assert homeless == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name: str) -> None:
    own = level(name)
    if own is None:
        return
    up = [other for other in imports(modules()[name]) if (theirs := level(other)) is not None and theirs > own]
    assert up == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_imported_in_its_home_alone(library: str) -> None:
    strangers = [
        name
        for name, path in modules().items()
        if any(other == library or other.startswith(library + ".") for other in imports(path))
        and not any(name == home or name.startswith(home + ".") for home in HOMES[library])
    ]
    assert strangers == []


def test_platform_never_hides_the_standard_library() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
