"""The levels of the design: each imports only from below, and each library has one home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [
    ("reuse_models.method", "reuse_models.flops", "reuse_models.tower"),
    ("reuse_models.streams",),
    ("reuse_models.baselines", "reuse_models.reusevit", "reuse_models.training", "reuse_models.artifact"),
    ("reuse_models.registry", "reuse_models.encoder", "reuse_models"),
    ("reuse_models.verify", "tune_spaces"),
    ("dejavu.records", "dejavu.storage"),
    ("dejavu.video", "dejavu.backbones"),
    ("dejavu.observability",),
    ("dejavu.cluster", "dejavu.synthetic"),
    ("dejavu.datasets", "dejavu.tasks"),
    ("dejavu.embedding", "dejavu.verify"),
    ("dejavu.report",),
    ("dejavu.retrieval", "dejavu.stages"),
    ("dejavu.ablation", "dejavu.sweep"),
    ("dejavu.experiment",),
    ("dejavu.pipeline", "dejavu.rehearsal"),
    ("jobs",),
]
HOMES = {
    "ray": ("dejavu.cluster", "dejavu.observability", "dejavu.stages", "dejavu.sweep", "jobs"),
    "mlflow": ("dejavu.observability",),
    "av": ("dejavu.video", "jobs.plain_loop"),  # the latter stands for a script without our code
    "triton": ("reuse_models.reusevit.engines",),
}
LOOSE = 5
"""Files beside rooms that a package may have."""
LARGEST = 1 / 3
"""Of all lines, in one room."""


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
    return found | {f"jobs.{path.stem}": path for path in (ROOT / "jobs").rglob("*.py")}


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


def test_no_two_modules_import_each_other_by_whatever_way() -> None:
    """Imports within functions count; a package stands for nothing but its own file."""
    names = modules()
    arrows = {name: {other for other in imports(path) if other in names} - {name} for name, path in names.items()}
    for _ in names:  # whatever imports nothing that is left cannot lie on a circle
        arrows = {name: others & arrows.keys() for name, others in arrows.items() if others & arrows.keys()}
    assert sorted(arrows) == []


@pytest.mark.parametrize("package", ["platform/dejavu", "reuse_models"])
def test_few_files_lie_beside_the_rooms(package: str) -> None:
    loose = [path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE, loose


def test_no_room_holds_a_third_of_the_lines() -> None:
    lines: dict[str, int] = {}
    for name, path in modules().items():
        room = ".".join(name.split(".")[:2])
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    whole = sum(lines.values())
    assert {room: number for room, number in lines.items() if number > LARGEST * whole} == {}


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
