"""How a run is doing: `python jobs/pipeline.py RECIPE [--results DIR] --status [--json]`.

Reads the results folder alone, in a second, while the run works there or after it. The other words of the run's own
command may stay. Status 0: running or finished; 1: no run there; 3: stopped, failed or died.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from dejavu.storage.one_line import exit_status
from dejavu.storage.store_path import store_path
from dejavu.storage.results_folder import results_folder
from dejavu.observability.status import describe, read_status

NO_RUN, BROKEN = 1, 3


def main(words: Sequence[str]) -> int:
    """Print how the run is doing whose command's words these are; return the exit status."""
    return exit_status(lambda: run(words))


def run(words: Sequence[str]) -> int:
    """Read and print; return the exit status."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--results")
    parser.add_argument("--json", action="store_true")
    options, _ = parser.parse_known_args(words)
    recipe = words[0] if words and not words[0].startswith("-") else "demo"
    now = time.time()
    results = results_folder(recipe, options.results and store_path(options.results))
    if (status := read_status(results)) is None:
        print(f"status: got no run in {results}, expected status.json there; check --results", file=sys.stderr)
        return NO_RUN
    state = status.judged(now)
    if options.json:
        print(json.dumps({**asdict(status), "state": state, "results": str(results)}, indent=2))
    else:
        print(describe(status, results, now))
    return 0 if state in ("running", "finished") else BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
