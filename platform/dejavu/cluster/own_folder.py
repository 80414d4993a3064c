"""Where the files of a cluster of our own lie: paths of sockets are short, and not everybody has a home."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import ray

LONGEST_BYTES = 21
"""Of TMPDIR: Ray's sockets lie up to 86 bytes deeper in a cluster of our own, and the system takes 107 in all."""
SHORT = ("/tmp", "/var/tmp", "/dev/shm")


class FolderError(OSError):
    """There is no folder for a cluster; one line says why and what to do."""


def shorten_tmpdir() -> None:
    """Let TMPDIR be a short private folder, gone with this process, where sockets do not fit into what it is.

    Ray and the processes that Python starts by itself put sockets there.

    Raises:
        FolderError: There is no short one that can be written.
    """
    given = tempfile.gettempdir()
    if len(os.fsencode(given)) <= LONGEST_BYTES:
        return
    root = next((one for one in SHORT if os.access(one, os.W_OK | os.X_OK)), None)
    if root is None:
        raise FolderError(
            f"TMPDIR: got {given}, expected at most {LONGEST_BYTES} bytes, since sockets lie there, and none of "
            f"{', '.join(SHORT)} can be written; set it to a shorter folder"
        )
    os.environ["TMPDIR"] = tempfile.tempdir = _until_the_end("dv-", root)
    print(f"TMPDIR: {given} is too long for Ray's sockets; {tempfile.tempdir} is used instead", flush=True)


def ensure_token() -> None:
    """Give a cluster of our own a token in a private folder where Ray would write one to a home that is not there."""
    given = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(os.environ.get(name) for name in given) or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    home = Path(os.environ.get("HOME") or os.devnull)
    kept = home / ".ray"
    if os.access(kept / "auth_token", os.R_OK) or os.access(kept if kept.exists() else home, os.W_OK | os.X_OK):
        return
    token = Path(_until_the_end("dejavu-", None), "token")
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    print(f"HOME: got {os.environ.get('HOME')}, which cannot be written; Ray's token lies in {token}", flush=True)


def _until_the_end(prefix: str, root: str | None) -> str:
    """Make a folder that this user alone may enter, and that is gone with this process."""
    folder = tempfile.mkdtemp(prefix=prefix, dir=root)

    def remove() -> None:
        ray.shutdown()  # Ray's own end comes later than this
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
