"""Fit ReuseViT at each target, and nothing else: `python jobs/fit.py [demo|tiny|nextqa] [--train.targets 0.9 0.8]`.

Takes the words of jobs/pipeline.py and works in the same results folder: a pipeline run afterwards trains nothing.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import sys
from dataclasses import replace

import pipeline

from dejavu.experiment import parse


def main() -> int:
    """Prepare and transcode what is lacking, fit, print what was achieved; return the exit status."""
    return pipeline.attempt(lambda: replace(parse(sys.argv[1:]), stages=("transcode", "train")))


if __name__ == "__main__":
    sys.exit(main())
