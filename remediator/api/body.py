"""Reads the bodies of requests within bounds of size and time, compressed or not.

aiohttp has neither bound for a body that is read in pieces, and its own decompression is
switched off, so that a small body that inflates without end is seen here. All large bodies together
have a bound too: many senders at once, or one with many connections, take no more memory than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from aiohttp import web

EXCERPT = 64 * 1024
"""Bytes kept of what is too large or cannot be used."""
LARGEST_AT_ONCE = 4
"""Bodies of the largest size for which there is room at the same time."""
_PIECE = 256 * 1024
_ZLIB_OR_GZIP = 47


class Crowded(Exception):
    """There is no room for more of large bodies now."""


class Room:
    """Memory for the large bodies of all requests that are under way."""

    def __init__(self, most: int) -> None:
        """Hold ``most`` bytes; the first ``EXCERPT`` bytes of each body are not counted."""
        self._most = most
        self.held = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Give one request a share, for as long as it may keep its body."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def take(self, size: int) -> None:
        """Raise ``Crowded`` where there is no room for that many bytes."""
        if self.held + size > self._most:
            raise Crowded
        self.held += size


class Share:
    """What one request holds of the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0

    def hold(self, size: int) -> None:
        """Have room for a body of ``size`` bytes; raises ``Crowded``."""
        more = max(size - EXCERPT, 0) - self._held
        if more > 0:
            self._room.take(more)
            self._held += more

    def give_back(self) -> None:
        """Hold nothing any more."""
        self._room.held -= self._held
        self._held = 0


@dataclass(frozen=True)
class BodyLimits:
    """Bounds of one request's body."""

    max_body: int = 16 * 1024 * 1024
    """Bytes, after decompression."""
    timeout: float = 10.0
    """Seconds in which the whole body must arrive."""
    room: Room = field(init=False)
    """For the large bodies of all requests with these limits."""

    def __post_init__(self) -> None:
        """Make room for a few of the largest bodies."""
        object.__setattr__(self, "room", Room(LARGEST_AT_ONCE * self.max_body))

    @property
    def max_read(self) -> int:
        """Bytes that are read, and not kept, of a body that is too large."""
        return 4 * self.max_body


class Fault(StrEnum):
    """Why a body cannot be used."""

    TOO_LARGE = "too_large"
    SLOW = "slow"
    CUT = "cut"
    """The sender went away; there is nobody to answer."""
    CROWDED = "crowded"
    """Other large bodies take all the room; the sender has to come again."""
    ENCODING = "encoding"
    """The content encoding is unknown, or one of the encodings is damaged."""


@dataclass(frozen=True)
class Body:
    """What was received."""

    content: bytes
    """The body, decompressed; its first 64 KiB when there is a fault."""
    size: int
    """Bytes after decompression, or the announced length of a body that was not read to its end."""
    digest: str
    """SHA-256 of what was read, in hex."""
    fault: Fault | None = None
    reason: str = ""
    """What is wrong, where, and what to do; empty without a fault."""


class Damaged(Exception):
    """The compressed stream cannot be read."""


async def receive(request: web.Request, limits: BodyLimits, share: Share | None = None) -> Body:
    """Read a request's body; what is wrong with it is in the answer's ``fault``.

    It is kept in ``share``, where there is one.
    """
    tally = _Tally(limits.max_body, share)
    try:
        async with asyncio.timeout(limits.timeout):
            await _ask_for_it(request)
            await _fill(tally, request, limits.max_read)
    except TimeoutError:
        return tally.body(Fault.SLOW, f"the body did not arrive within {limits.timeout:g} s")
    except OSError:
        return tally.body(Fault.CUT, "the sender went away before the body was complete")
    except web.RequestPayloadError:
        return tally.body(Fault.ENCODING, "the transfer encoding of the body is damaged")
    except Damaged as error:
        return tally.body(Fault.ENCODING, str(error))
    except Crowded:
        return tally.body(Fault.CROWDED, "other large bodies are being taken")
    if tally.size > limits.max_body:
        return tally.body(
            Fault.TOO_LARGE,
            f"the body is larger than max_body ({limits.max_body} bytes); raise max_body, or send"
            " fewer alerts at once (max_alerts of the webhook receiver)",
            announced=request.content_length,
        )
    return tally.body()


async def _fill(tally: _Tally, request: web.Request, max_read: int) -> None:
    inflater = _Inflater(request.headers.get("Content-Encoding", ""))
    raw = 0
    async for chunk in request.content.iter_any():
        raw += len(chunk)
        for piece in inflater.feed(chunk):
            tally.add(piece)
            if tally.size > max_read:
                return
        if raw > max_read:
            raise Damaged(f"the compressed stream has not ended after {raw} bytes")
    inflater.finish()


async def ask_later(request: web.Request) -> None:
    """Let ``Expect: 100-continue`` wait until the caller is known and the body is wanted."""
    expect = request.headers.get("Expect", "").lower()
    if expect != "100-continue":
        raise web.HTTPExpectationFailed(text="only 100-continue can be expected")


async def _ask_for_it(request: web.Request) -> None:
    if request.headers.get("Expect") and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


class _Tally:
    """Counts and hashes all, and keeps what may be kept."""

    def __init__(self, max_body: int, share: Share | None) -> None:
        self.size = 0
        self._max_body = max_body
        self._share = share
        self._hash = hashlib.sha256()
        self._kept = bytearray()

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._hash.update(piece)
        if self.size <= self._max_body:
            if self._share is not None:
                self._share.hold(self.size)
            self._kept += piece
        elif len(self._kept) > EXCERPT:
            del self._kept[EXCERPT:]
            if self._share is not None:
                self._share.give_back()
        else:
            self._kept += piece[: EXCERPT - len(self._kept)]

    def body(
        self, fault: Fault | None = None, reason: str = "", announced: int | None = None
    ) -> Body:
        content = bytes(self._kept if fault is None else self._kept[:EXCERPT])
        size = max(self.size, announced or 0)
        return Body(content, size, self._hash.hexdigest(), fault, reason)


class _Inflater:
    """Undoes a content encoding piece by piece; no piece is large, whatever comes in."""

    def __init__(self, encoding: str) -> None:
        self._stream = None
        self._encoding = encoding.strip().lower() or "identity"
        if self._encoding in ("gzip", "x-gzip", "deflate"):
            self._stream = zlib.decompressobj(_ZLIB_OR_GZIP)
        elif self._encoding != "identity":
            raise Damaged(f"Content-Encoding {encoding[:50]!r} is not known; send gzip or plain")

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        if self._stream is None:
            yield chunk
            return
        while True:
            try:
                piece = self._stream.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise Damaged(f"the body is not a {self._encoding} stream") from error
            yield piece
            if self._stream.unused_data:
                raise Damaged(f"there is more after the end of the {self._encoding} stream")
            chunk = self._stream.unconsumed_tail
            if self._stream.eof or (not chunk and len(piece) < _PIECE):
                return

    def finish(self) -> None:
        if self._stream is not None and not self._stream.eof:
            raise Damaged(f"the {self._encoding} stream ends before it is complete")
