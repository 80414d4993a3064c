"""The audit, against a database of vulnerabilities that is made here, and against none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import audit
import pytest

FOUND = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-0001"],
    "summary": "bad",
    "details": "bad",
    "affected": [
        {
            "package": {"name": "six", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}],
            "versions": ["1.17.0"],
        }
    ],
}


class Database(BaseHTTPRequestHandler):
    """Answers as osv.dev does: `six` has a vulnerability."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": [FOUND]} if asked["package"]["name"] == "six" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture
def database() -> Iterator[list[str]]:
    """What makes pip-audit ask it."""
    server = HTTPServer(("127.0.0.1", 0), Database)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield ["-s", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}/v1/query"]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text("six==1.17.0\nidna==3.20\n")
    monkeypatch.setattr(audit, "PINNED", path)
    return path


def test_a_known_vulnerability_fails(database: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(database) == 1
    printed = capsys.readouterr().out
    assert "audit: six 1.17.0 has PYSEC-2026-1; mended in 9.9\n" in printed
    assert "audit: 2 of 2 packages looked up, 1 vulnerabilities to mend\n" in printed


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-0001"])
def test_one_that_is_ignored_with_a_reason_does_not(
    database: list[str], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(audit.IGNORED, name, "we do not call it")
    assert audit.main(database) == 0
    assert "PYSEC-2026-1; ignored: we do not call it" in capsys.readouterr().out


def test_none_found_passes(database: list[str], pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pinned.write_text("idna==3.20\n")
    assert audit.main(database) == 0
    assert capsys.readouterr().out == "audit: 1 of 1 packages looked up, 0 vulnerabilities to mend\n"


def test_no_database_is_said_in_one_line_and_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("audit: got no answer from a database of vulnerabilities (")
    assert printed.count("\n") == 1


def test_an_index_that_knows_no_package_is_no_database(capsys: pytest.CaptureFixture[str]) -> None:
    """To pip-audit that is "No known vulnerabilities found"."""
    skipped = [{"name": name, "skip_reason": f"Dependency not found on PyPI: {name}"} for name in ("a", "b")]
    assert audit.judge(skipped) == 0
    assert "got no answer from a database of vulnerabilities (of 2 packages it knows none)" in capsys.readouterr().out


def test_another_failure_fails(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pinned.write_text("this is no requirement\n")
    assert audit.main([]) == 1
    assert "run pip-audit by hand" in capsys.readouterr().out
