"""Which code a result follows from: the modules that its own module imports, directly or not, by what they do.

A change counts where it may change a number: comments, layout, docstrings and imports for type checkers alone do not.
Nothing is imported to find out, so that whoever names results need not have torch.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGES = {
    "dejavu": Path(__file__).resolve().parents[1],
    "reuse_models": Path(__file__).resolve().parents[3] / "reuse_models",
    "tune_spaces": Path(__file__).resolve().parents[3] / "tune_spaces",
}
"""Where our own packages lie; other libraries are pinned, and belong to no result's identity."""


def closure_version(roots: Iterable[str], alone: Iterable[str] = ()) -> str:
    """Hash the code behind some modules.

    Args:
        roots: Dotted names of modules that count with everything of ours that they import.
        alone: Of modules that count without what they import.

    Raises:
        ValueError: There is no such module of ours.
    """
    modules = {name for root in roots for name in import_closure(root)} | set(alone)
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(name.encode())
        digest.update(_meaning(_source(name)).encode())
    return digest.hexdigest()


def import_closure(root: str) -> frozenset[str]:
    """Return the dotted names of `root` and of every module of ours that it imports, directly or not.

    Imports within functions count, those under `if TYPE_CHECKING` do not; a package counts as its `__init__`.

    Raises:
        ValueError: There is no such module of ours.
    """
    _source(root)
    found: set[str] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(_source(name))
    return frozenset(found)


@cache
def _source(name: str) -> Path:
    path = _find(name)
    if path is None:
        raise ValueError(f"module: got {name}, expected one of {', '.join(PACKAGES)}; check its name")
    return path


def _find(name: str) -> Path | None:
    package, *parts = name.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if parts else (path / "__init__.py",)
    return next((one for one in candidates if one.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names: set[str] = set()
    for node in _walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # What is imported may be a module or something within one.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return tuple(sorted(name for name in names if _find(name)))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Walk all of a tree but what only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield from _walk(child)


@cache
def _meaning(path: Path) -> str:
    """Return what a file does: its syntax without strings that stand alone, which are documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [one for one in statements if not _is_documentation(one)])
    return ast.dump(tree)


def _is_documentation(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
