"""Look up every pinned package in a database of known vulnerabilities: `make audit`.

Ends with 1 where one is known that IGNORED does not name. Where no database answers (a package index is none), it says
so in one line and ends with 0: nothing was learnt, and the build is not to blame.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PINNED = Path(__file__).resolve().parents[1] / "constraints.txt"
IGNORED: dict[str, str] = {}
"""Id of a vulnerability -> why it does not concern this project."""
UNREACHABLE = re.compile(r"connect|timed? ?out|resol|unreachable|proxy|[45]\d\d (client|server) error", re.IGNORECASE)


def main(words: list[str]) -> int:
    """Audit; `words` are for pip-audit, such as `-s osv`. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Any other option goes to pip-audit, such as -s osv.")
    _, words = parser.parse_known_args(words)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINNED), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        said = ([line for line in done.stderr.splitlines() if line.strip()] or ["nothing"])[-1]
        if UNREACHABLE.search(said):
            return unknown(said)
        print(f"audit: got {said}, expected a report; run pip-audit by hand")
        return 1
    return judge(packages)


def judge(packages: list[dict[str, Any]]) -> int:
    """Print what is known of packages as pip-audit reports them; return 1 where something has to be mended."""
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return unknown(f"of {len(packages)} packages it knows none")
    to_mend = 0
    for package in known:
        for one in package["vulns"]:
            why = next((IGNORED[name] for name in (one["id"], *one.get("aliases", ())) if name in IGNORED), None)
            to_mend += why is None
            advice = f"ignored: {why}" if why else f"mended in {', '.join(one['fix_versions']) or 'no version'}"
            print(f"audit: {package['name']} {package['version']} has {one['id']}; {advice}")
    print(f"audit: {len(known)} of {len(packages)} packages looked up, {to_mend} vulnerabilities to mend")
    return int(to_mend > 0)


def unknown(said: str) -> int:
    """Say that nothing was learnt."""
    print(f"audit: got no answer from a database of vulnerabilities ({said[:160]}), expected one; nothing was checked")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
