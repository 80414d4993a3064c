"""The pictures of a film in display order, with what is damaged among them.

A damaged picture is one of which the decoder says so, or a packet that it refuses. What is predicted from it is wrong
as well, and nothing says so: pictures are taken for unsound until the next key frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeAlias

import av
import av.logging
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dejavu.video.film import Film
from dejavu.video.source import VideoError, decoder_log, demux

VideoPacket: TypeAlias = "Packet[VideoStream]"
DECODING_ALONE = frozenset({"avi", "asf"})
"""Containers that keep when packets are decoded, and not when pictures are shown."""
DELAY_MANY = frozenset({"h264", "hevc", "vvc", "av1"})
"""Codecs whose decoders may hold back several pictures; the others hold back one."""
JOINED_S = 60
"""Recordings whose clocks lie farther apart were joined; what lies nearer was lost."""
FOLLOWING = 3
"""Packets by which FFmpeg's word that something is missing comes too early, or one more."""


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
    num_lost: int = 0
    """Pictures before it of which nothing was left to show."""


class _BestTime:
    """Which of a picture's two timestamps is to be believed: what FFmpeg's players call the best effort.

    A picture's own (pts) unless it has run backwards more often than that of decoding (dts), as where a decoder hands
    out a picture late after a hole. AVI and ASF keep that of decoding alone: FFmpeg makes the other one up. A picture
    comes out of the decoder with that of the packet that went in last: later than it is shown, by a delay. The
    first picture, a key frame, tells it, where none before it was left out for want of what it refers to.
    """

    def __init__(self, container: str, codec: str) -> None:
        self.decoding_alone = container in DECODING_ALONE
        self.delays_many = codec in DELAY_MANY
        self.delay: int | None = None
        self.fed: dict[int | None, int | None] = {}
        """From the one to the other, of packets up to the first picture."""
        self.num_wrong = {"pts": 0, "dts": 0}
        self.last: dict[str, int] = {}

    def feed(self, packet: VideoPacket) -> None:
        """See a packet that the decoder is given."""
        if self.decoding_alone and self.delay is None:
            self.fed.setdefault(packet.pts, packet.dts)

    def of_packet(self, packet: VideoPacket) -> int | None:
        """Return when a packet is due that the decoder is not given."""
        return packet.dts if packet.pts is None or self.decoding_alone else packet.pts

    def __call__(self, frame: VideoFrame) -> int | None:
        if self.decoding_alone:
            if self.delay is None:
                self.delay = self._delay_of(frame)
                self.fed.clear()
            return None if frame.dts is None else frame.dts - self.delay
        pts, dts = frame.pts, frame.dts
        self._note("pts", dts if pts is None else pts, counts=pts is not None)
        self._note("dts", pts if dts is None else dts, counts=dts is not None)
        if pts is None or (dts is not None and self.num_wrong["pts"] > self.num_wrong["dts"]):
            return dts
        return pts

    def _delay_of(self, first: VideoFrame) -> int:
        own, last = self.fed.get(first.pts), first.dts
        if own is None or last is None or own == last:
            return 0
        before = [time for time in self.fed.values() if time is not None and time < last]
        return last - (own if self.delays_many else max(before, default=own))

    def _note(self, name: str, time: int | None, *, counts: bool) -> None:
        if time is None:
            return
        self.num_wrong[name] += counts and name in self.last and time <= self.last[name]
        self.last[name] = time


class Pictures:
    """Decodes a film of which nothing was read, once; counts pictures and damage, which ends it unless it conceals."""

    def __init__(self, path: Path, film: Film, *, conceals: bool) -> None:
        self.path, self.film, self.conceals = path, film, conceals
        self.usual = 1 / Fraction(film.stream.average_rate or 25)
        self.num_pictures = 0
        """Shown or lost."""
        self.num_damaged = self.num_lost = 0
        """Pictures, and those among them of which nothing was left to show."""
        self.reason = ""
        """What is known of the first damage."""
        self.end = 0
        """When the last packet ends, by when it is decoded, in the stream's time base."""
        self._best_time = _BestTime(film.container.format.name, film.stream.codec_context.name)
        self._unread: av.FFmpegError | None = None
        """What ended the file before its end."""
        self._unsound: int | None = None
        """Timestamp from which on pictures are unsound."""
        self._fed: set[int] = set()
        """And those of packets that the decoder was given since: earlier ones among them may be predicted from it."""
        self._owed = 0
        """Damaged pictures that the decoder spoke of and has not yet given."""
        self._torn: VideoPacket | None = None
        """Around it something is missing; it is for the decoder to say what, in the next packets."""
        self._torn_for = 0
        self._steps: deque[Fraction] = deque(maxlen=16)
        """From packet to packet, the latest."""

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures.

        Raises:
            VideoError: One is damaged, and damage is not concealed.
            av.FFmpegError: A packet cannot be read or decoded, and damage is not concealed.
        """
        shown = False
        for packet, following in _with_following(self._packets()):
            if packet.dts is not None:
                self.end = max(self.end, packet.dts + (packet.duration or 0))
            if not packet.size:
                if shown and (time := self._best_time.of_packet(packet)) is not None:
                    told, lasts = time * packet.time_base, self._lasts(packet.duration, packet.time_base)
                    yield Picture(None, told, lasts, num_lost=self.num_lost)
                continue
            if packet.is_corrupt and not self._begins_again(packet, following):
                self._tear(packet, following)
            for picture in self._decoded(packet):
                shown = True
                yield picture
            if following and packet.dts is not None and following[0].dts is not None:
                self._steps.append((following[0].dts - packet.dts) * packet.time_base)
        self._count_torn()
        if self._unread:
            self._lose(None, self._unread)
        yield from self._decoded(None)

    def _packets(self) -> Iterator[VideoPacket]:
        try:
            yield from demux(self.film.container, self.film.stream)
        except av.FFmpegError as error:
            self._unread = error

    def _decoded(self, packet: VideoPacket | None) -> Iterator[Picture]:
        """Decode one packet; None for what the decoder still holds."""
        if self._unsound is not None and packet and packet.pts is not None:
            self._fed.add(packet.pts)
        if packet:
            self._best_time.feed(packet)
        num_damaged = self.num_damaged
        with decoder_log(av.logging.INFO) as log:
            try:
                frames = packet.decode() if packet else self.film.stream.codec_context.decode(None)
            except av.FFmpegError as error:
                frames = []
                self._lose(packet, error)
        for text in (" ".join(text.split()) for _, _, text in log if text.startswith("concealing")):
            self._owed += 1
            self._damage(packet, text)
        if self.num_damaged > num_damaged:
            self._torn = None
        elif self._torn and self._torn_for:
            self._torn_for -= 1
        else:
            self._count_torn()
        for frame in frames:
            if frame.is_corrupt and self._owed:
                self._owed -= 1
            elif frame.is_corrupt:
                self._damage(packet, "marked as corrupt")
            self.num_pictures += 1
            time_base = frame.time_base or self.film.stream.time_base
            best = self._best_time(frame)
            told = None if best is None or time_base is None else best * time_base
            yield Picture(frame, told, self._lasts(frame.duration, time_base), self._is_sound(frame), self.num_lost)

    def _tear(self, packet: VideoPacket, following: Sequence[VideoPacket]) -> None:
        """Note that something is missing behind a packet, or at its end: what follows is unsound."""
        self._count_torn()
        self._torn, self._torn_for = packet, FOLLOWING
        self._lose_faith((following[0] if following else packet).pts)

    def _count_torn(self) -> None:
        """Count what is missing and the decoder has no word of: whole pictures."""
        if self._torn:
            self._damage(None, "some of it is missing", marks=False)
        self._torn = None

    def _lasts(self, duration: int | None, time_base: Fraction | None) -> Fraction:
        return duration * time_base if duration and time_base is not None else self.usual

    def _lose(self, packet: VideoPacket | None, error: av.FFmpegError) -> None:
        if not self.conceals:
            raise error
        self.num_pictures += 1
        self.num_lost += 1
        self._damage(packet, (error.strerror or str(error)).splitlines()[0])

    def _damage(self, packet: VideoPacket | None, what: str, *, marks: bool = True) -> None:
        if not self.conceals:
            raise VideoError(
                f"{self.path.name}: got a damaged picture ({what}), expected an intact video; fetch the file again, "
                "leave it out, or give --damaged conceal"
            )
        self.num_damaged += 1
        self.reason = self.reason or what
        if marks:
            self._lose_faith(packet.pts if packet else None)

    def _lose_faith(self, since: int | None) -> None:
        """Take pictures from a timestamp on for unsound; all of them for None."""
        since = since or 0
        if self._unsound is None:
            self._fed.clear()
        self._unsound = since if self._unsound is None else min(since, self._unsound)

    def _is_sound(self, frame: VideoFrame) -> bool:
        """Tell whether a picture is as it was recorded, and end the stretch of unsound ones at a whole key frame."""
        if frame.is_corrupt:
            return False
        if self._unsound is None:
            return True
        if frame.pts is not None and frame.pts < self._unsound and frame.pts not in self._fed:
            return True
        if not frame.key_frame or frame.pts == self._unsound:
            return False
        self._unsound = None
        return True

    def _begins_again(self, packet: VideoPacket, following: Sequence[VideoPacket]) -> bool:
        """Tell whether another recording was joined on here, whose packets do not count on: none is missing.

        It has a clock of its own, or goes on with this one at the same pace and a key frame.
        """
        times = [one.dts * one.time_base for one in (packet, *following) if one.dts is not None]
        steps = [after - before for before, after in pairwise(times)]
        if any(not 0 <= step <= JOINED_S for step in steps):
            return True
        usual = max(self._steps, default=JOINED_S)
        return any(one.is_keyframe for one in following) and max(steps, default=JOINED_S) <= 1.5 * usual

    @property
    def delay_s(self) -> Fraction:
        """By how much timestamps of decoding are later than when pictures are shown, where there are no others."""
        return (self._best_time.delay or 0) * (self.film.stream.time_base or Fraction(0))


def _with_following(packets: Iterator[VideoPacket]) -> Iterator[tuple[VideoPacket, Sequence[VideoPacket]]]:
    """Yield each packet with as many as FOLLOWING behind it."""
    window = deque(islice(packets, FOLLOWING))
    for packet in packets:
        window.append(packet)
        yield window.popleft(), window
    while window:
        yield window.popleft(), window
