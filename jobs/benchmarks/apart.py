"""What a benchmark measures in a process of its own, and what Linux says of the memory of this one."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def report_of(module: str, call: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Have a benchmark's function called in a process of its own; return what it returns, as JSON gives it back."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, {module} as b; print(json.dumps(b.{call}))"],
        env=environment,
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    # What Ray forwards from its processes may come after it.
    row: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return row


def status_bytes(name: str) -> int:
    """Return one of this process's sizes as Linux counts it, such as `VmRSS`, or `VmHWM` for the largest there was."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Give back what is free, and let `VmHWM` start anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
