"""Transcode in a process apart: a video that crashes FFmpeg, or on which it hangs, costs that process alone."""

from __future__ import annotations

import atexit
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dejavu.video import film
from dejavu.video.apart import Apart, ApartError, serve
from dejavu.video.mp4 import Mp4Info, TranscodeConfig, VideoError, transcode

CLIP_LIMIT_S = 1800.0
"""For one clip, unless another limit is given."""
LOOK_LIMIT_S = 10.0
"""For what a file declares."""
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""Not the video's doing: the system took memory or the machine away. Worth another try."""

_PROCESS = Apart(__name__)
atexit.register(_PROCESS.close)


def transcode_apart(  # noqa: PLR0913  those of `transcode`, and the limit
    source: Path,
    target: Path,
    *,
    frame_px: int,
    config: TranscodeConfig,
    view: float = 1.0,
    limit_s: float = CLIP_LIMIT_S,
) -> Mp4Info:
    """Do as `transcode` does, in a process apart of which this one has one.

    Raises:
        VideoError: Something is wrong with the source; it crashes FFmpeg, or takes longer than limit_s.
        OSError: Writing failed, or the process was killed by somebody.
        RuntimeError: Another error, named in it.
    """
    files = {"source": str(source), "target": str(target)}
    request = {**files, "frame_px": frame_px, "view": view, "config": asdict(config)}
    try:
        reply = _PROCESS.ask(request, limit_s)
    except ApartError as error:
        for torn in target.parent.glob(f".{target.name}.*.tmp"):
            torn.unlink(missing_ok=True)
        if error.signal == signal.SIGALRM:
            raise VideoError(
                f"{source.name}: got more than {limit_s:g} s of transcoding, expected less; leave it out, or raise "
                "--clip-limit-s if it is just long"
            ) from error
        if error.signal in FROM_OUTSIDE:
            raise OSError(str(error)) from error
        raise VideoError(
            f"{source.name}: got a crash of FFmpeg ({error.signal.name if error.signal else error}), expected an "
            "intact video; leave it out"
        ) from error
    if "info" in reply:
        return Mp4Info(**reply["info"])
    if reply["kind"] == "OSError":
        failed = OSError(reply["line"])
        failed.errno = reply["errno"]
        raise failed
    raise (VideoError if reply["kind"] == "ValueError" else RuntimeError)(reply["line"])


def declared_seconds(path: Path) -> float | None:
    """Return how long a file says that it lasts; None where it does not say, or crashes FFmpeg or holds it up."""
    with suppress(ApartError):
        return _PROCESS.ask({"declared": str(path)}, LOOK_LIMIT_S).get("seconds")
    return None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Transcode or look, as a request asks; return what came of it, or what kind of error there was, in one line."""
    try:
        if "declared" in request:
            return {"seconds": film.declared_seconds(Path(request["declared"]))}
        source, target = Path(request["source"]), Path(request["target"])
        config = TranscodeConfig(**request["config"])
        info = transcode(source, target, frame_px=request["frame_px"], config=config, view=request["view"])
    except Exception as error:  # whatever it is, the parent shall hear of it
        kind = next((kind for kind in (OSError, ValueError) if isinstance(error, kind)), type(error)).__name__
        text = (str(error).strip().splitlines() or [""])[0]
        line = text if text and kind in ("OSError", "ValueError") else f"{kind}: {text}"
        return {"kind": kind, "line": line, "errno": getattr(error, "errno", None)}
    return {"info": asdict(info)}


if __name__ == "__main__":
    serve(answer)
