"""A reader is there for decoding alone."""

import subprocess
import sys


def test_a_reader_starts_without_torch() -> None:
    """To import it would double what a reader's start takes, and its memory."""
    code = (
        "import sys, dejavu.embedding.reader; print(*sorted({'torch', 'transformers', 'mlflow'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not found.stdout.split()
