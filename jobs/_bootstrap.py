"""Lets a job find the project's packages where the project is not installed: `import _bootstrap` is its first line.

`dejavu.cluster.cluster` does the same for the workers, which do not see the driver's `sys.path`.
"""

import atexit
import gc
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for path in (str(ROOT), str(ROOT / "platform")):
    if path not in sys.path:
        sys.path.insert(0, path)

# At its end Python looks for garbage once more, among all that torch, Ray and MLflow have made: seconds for nothing.
atexit.register(gc.freeze)
