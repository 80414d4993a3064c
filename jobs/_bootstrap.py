"""What every job needs before anything else: `import _bootstrap` is its first line.

It lets a job find the project's packages where the project is not installed; `dejavu.cluster.cluster` does the same for
the workers, which do not see the driver's `sys.path`. And it keeps what the machine says to itself away from proxies.
"""

import atexit
import gc
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for path in (str(ROOT), str(ROOT / "platform")):
    if path not in sys.path:
        sys.path.insert(0, path)

# Ray, its jobs' submission and MLflow ask servers on this machine, and each of them would ask `http_proxy` to do it.
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
if exempt != "*":
    hosts = [host for word in exempt.split(",") if (host := word.strip())]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys((*hosts, *LOOPBACK)))

# A terminal that knows fewer characters than names of files have shows their numbers; so do the processes begun here.
for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
        if stream.encoding.lower() not in ("utf-8", "utf8"):
            os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:backslashreplace"

# At its end Python looks for garbage once more, among all that torch, Ray and MLflow have made: seconds for nothing.
atexit.register(gc.freeze)
