"""The pictures of a film in display order, with what is damaged among them.

A damaged picture is one of which the decoder says so, or a packet that it refuses. What is predicted from it is wrong
as well, and nothing says so: pictures are taken for unsound until the next key frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.logging
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dejavu.video.film import Film
from dejavu.video.source import VideoError, decoder_log


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, or the word that the one before stays."""

    frame: VideoFrame | None
    """None: as before, which is what a packet without bytes says."""
    told: Fraction | None
    """Its timestamp in seconds."""
    lasts: Fraction
    """Seconds; where the stream tells none, the average rate does."""
    is_sound: bool = True


class Pictures:
    """Decodes a film once, from its start; counts pictures and damage."""

    def __init__(self, path: Path, film: Film, *, conceals: bool) -> None:
        """Take a film that nothing was read of.

        Args:
            path: Of the file, for messages.
            film: The open film.
            conceals: Whether damage is only counted.
        """
        self.path, self.film, self.conceals = path, film, conceals
        self.usual = 1 / Fraction(film.stream.average_rate or 25)
        self.num_pictures = 0
        """Shown or lost."""
        self.num_damaged = self.num_lost = 0
        """Pictures, and those among them of which nothing was left to show."""
        self.reason = ""
        """What is known of the first damage."""
        self._unsound: int | None = None
        """Timestamp from which on pictures are unsound."""
        self._owed = 0
        """Damaged pictures that the decoder spoke of and has not yet given."""

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures.

        Raises:
            VideoError: One is damaged, and damage is not concealed.
            av.FFmpegError: A packet cannot be read or decoded, and damage is not concealed.
        """
        shown = False
        for packet in self._packets():
            if not packet.size:
                if shown and (time := packet.dts if packet.pts is None else packet.pts) is not None:
                    yield Picture(None, time * packet.time_base, self._lasts(packet.duration, packet.time_base))
                continue
            for picture in self._decoded(packet):
                shown = True
                yield picture
        yield from self._decoded(None)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        try:
            yield from self.film.container.demux(self.film.stream)
        except av.FFmpegError as error:
            self._lose(None, error)

    def _decoded(self, packet: Packet[VideoStream] | None) -> Iterator[Picture]:
        """Decode one packet; None for what the decoder still holds."""
        with decoder_log(av.logging.INFO) as log:
            try:
                frames = packet.decode() if packet else self.film.stream.codec_context.decode(None)
            except av.FFmpegError as error:
                frames = []
                self._lose(packet, error)
        for text in (" ".join(text.split()) for _, _, text in log if text.startswith("concealing")):
            self._owed += 1
            self._damage(packet, text)
        for frame in frames:
            if frame.is_corrupt and self._owed:
                self._owed -= 1
            elif frame.is_corrupt:
                self._damage(packet, "marked as corrupt")
            self.num_pictures += 1
            time_base = frame.time_base or self.film.stream.time_base
            told = None if frame.pts is None or time_base is None else frame.pts * time_base
            yield Picture(frame, told, self._lasts(frame.duration, time_base), self._is_sound(frame))

    def _lasts(self, duration: int | None, time_base: Fraction | None) -> Fraction:
        return duration * time_base if duration and time_base is not None else self.usual

    def _lose(self, packet: Packet[VideoStream] | None, error: av.FFmpegError) -> None:
        if not self.conceals:
            raise error
        self.num_pictures += 1
        self.num_lost += 1
        self._damage(packet, (error.strerror or str(error)).splitlines()[0])

    def _damage(self, packet: Packet[VideoStream] | None, what: str) -> None:
        if not self.conceals:
            raise VideoError(
                f"{self.path.name}: got a damaged picture ({what}), expected an intact video; fetch the file again, "
                "leave it out, or give --damaged conceal"
            )
        self.num_damaged += 1
        self.reason = self.reason or what
        since = packet.pts if packet and packet.pts is not None else 0
        self._unsound = since if self._unsound is None else min(since, self._unsound)

    def _is_sound(self, frame: VideoFrame) -> bool:
        """Tell whether a picture is as it was recorded, and end the stretch of unsound ones at a whole key frame."""
        if frame.is_corrupt:
            return False
        if self._unsound is None or (frame.pts is not None and frame.pts < self._unsound):
            return True
        if not frame.key_frame or frame.pts == self._unsound:
            return False
        self._unsound = None
        return True
