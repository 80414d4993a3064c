"""What the documents name exists: links, files, commands, flags, and the lines that a user sees."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from dejavu.experiment import RECIPES, parse

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
LINES_SEEN = ROOT / "docs" / "troubleshooting.md"


def blocks(text: str) -> list[str]:
    """Return the code blocks of a document, fenced or indented, continued lines joined."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    return [block.replace("\\\n", " ") for block in [*fenced, *indented]]


def code(text: str) -> str:
    """Return everything set as code, blocks and spans."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks(text), *re.findall(r"`([^`]+)`", outside)])


def pipeline_words(text: str) -> list[list[str]]:
    """Return the arguments of each `jobs/pipeline.py` that stands in code, without comments and placeholders."""
    found = []
    for line in code(text).splitlines():
        for call in re.findall(r"jobs/pipeline\.py([^;|&]*)", line):
            found.append(shlex.split(call.replace("...", ""), comments=True))
    return [words for words in found if words]


def anchor(heading: str) -> str:
    """Return what a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_resolves(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        path = document.parent / name if name else document
        page = path.read_text(encoding="utf-8") if path.suffix == ".md" and path.is_file() else ""
        headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
        if not path.exists() or (part and part not in map(anchor, headings)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_script_that_is_called_exists(document: Path) -> None:
    named = set(re.findall(r"(?<!tests/)\b(jobs/\w+\.py)\b", document.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_source_that_is_named_exists(document: Path) -> None:
    names = re.findall(r"`([\w./-]+\.(?:py|yaml|toml|txt|md))`", document.read_text(encoding="utf-8"))
    produced = {"config.yaml", "failures.csv"}
    homes = (
        ROOT,
        ROOT / "platform",
        ROOT / "platform" / "dejavu",
        ROOT / "reuse_models",
        ROOT / "tune_spaces",
        document.parent,
    )
    lost = [name for name in names if name not in produced and not any((home / name).exists() for home in homes)]
    assert lost == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_of_the_pipeline_is_known(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in pipeline_words(document.read_text(encoding="utf-8")):
        if words[0] not in RECIPES and not words[0].startswith("-"):
            pytest.fail(f"{document.name}: got recipe {words[0]!r}, expected one of {', '.join(RECIPES)}")
        if {"--help", "--status"} & set(words):
            continue
        try:
            parse(words)
        except SystemExit:
            pytest.fail(f"{document.name}: the pipeline refuses {shlex.join(words)}: {capsys.readouterr().err[-500:]}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_in_running_text_is_one_of_ours_or_of_a_tool(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["demo", "--help"])
    known = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    for job in (ROOT / "jobs").rglob("*.py"):
        source = job.read_text(encoding="utf-8")
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', source))
        known |= {"--" + name.replace("_", "-") for name in re.findall(r"^    (\w+): ", source, re.MULTILINE)}
    outside = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    # A span that begins with a flag speaks of one of our own commands.
    spans = re.findall(r"`(--[a-z][\w.-]*)[^`]*`", outside)
    rays = {"--working-dir", "--address", "--node-ip-address", "--no-wait"}
    assert sorted(set(spans) - known - rays) == []


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", code(document.read_text(encoding="utf-8")), re.MULTILINE))
        assert named <= targets, document.name


def test_shell_blocks_are_shell() -> None:
    for document in (ROOT / "docs" / "cluster.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for block in blocks(document.read_text(encoding="utf-8")):
            if "─►" in block or "\nimport " in f"\n{block}":
                continue
            checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{document.name}: {checked.stderr}\n{block}"


# -------------------------------------------------------------------------------------------------- lines that are seen
@cache
def templates() -> list[str]:
    """Return every text in the sources, `…` for what is filled in."""
    found = []
    for top in ("platform", "reuse_models", "tune_spaces", "jobs"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def seen_lines() -> list[str]:
    """Return the error lines that docs/troubleshooting.md quotes, without the `error: ` before them."""
    text = LINES_SEEN.read_text(encoding="utf-8")
    quoted = [line for block in blocks(text) for line in block.splitlines()]
    quoted += [span for span in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE) if ": got " in span]
    return [line.removeprefix("error: ").removeprefix("RuntimeError: ") for line in quoted]


def test_the_page_has_ten_failures() -> None:
    assert len(re.findall(r"^### \d+\. ", LINES_SEEN.read_text(encoding="utf-8"), re.MULTILINE)) == 10
    assert len(seen_lines()) > 10


@pytest.mark.parametrize("line", seen_lines())
def test_a_quoted_line_is_in_the_code(line: str) -> None:
    for template in templates():
        fixed = template.partition("\n")[0].split("…")
        if sum(map(len, fixed)) > 25 and re.fullmatch(".*".join(map(re.escape, fixed)), line):
            return
    pytest.fail(f"no error of ours reads {line!r}")


def test_a_line_that_the_code_does_not_have_is_found() -> None:
    with pytest.raises(pytest.fail.Exception):
        test_a_quoted_line_is_in_the_code("--videos: got …, expected a file; recipe … reads it")
