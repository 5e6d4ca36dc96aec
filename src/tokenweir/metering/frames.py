"""Frames: how one journal record lies in a segment file, and what a reader may conclude from what it finds.

A frame is the length of its body (4 bytes), the CRC-32 of the body (4 bytes), and the body: a record as a MessagePack array. A length of zero, or
the end of the file, is the end for now. A frame that runs past the end is torn: its writer is writing it, or died while it did. A frame whose
checksum does not fit is torn if nothing follows it, and corrupt otherwise; nothing behind it can be trusted. Change together with `journal.py`.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator

import msgspec

from tokenweir.ledger.entries import Record

HEADER = struct.Struct("<II")
FRAME_BYTES_MAX = 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Ending(enum.Enum):
    """Why reading stopped."""

    CLEAN = "clean"
    """All that was written has been read."""
    TORN = "torn"
    """The last frame is not whole."""
    CORRUPT = "corrupt"
    """A frame does not check, and more follows it."""


def encode_frame(record: Record) -> bytes:
    """The record as a frame."""
    body = _encode(record)
    return HEADER.pack(len(body), zlib.crc32(body)) + body


class FrameReader:
    """Reads the frames of a piece of a segment. `offset` is always the end of the last whole frame; `ending` says why it stopped there."""

    def __init__(self, content: bytes, offset: int = 0) -> None:
        self.offset = offset
        self.ending = Ending.CLEAN
        self._content = memoryview(content)
        self._base = offset

    def __iter__(self) -> Iterator[Record]:
        content = self._content
        position, end = 0, len(content)
        while end - position >= HEADER.size:
            length, checksum = HEADER.unpack_from(content, position)
            if length == 0:
                return
            start = position + HEADER.size
            body = content[start : start + length]
            if length > FRAME_BYTES_MAX or len(body) < length:
                # A length nobody would write means that the header itself is damaged.
                self.ending = Ending.CORRUPT if length > FRAME_BYTES_MAX else Ending.TORN
                return
            if zlib.crc32(body) != checksum:
                self.ending = Ending.TORN if not any(content[start + length : start + length + HEADER.size]) else Ending.CORRUPT
                return
            try:
                record = _decode(body)
            except msgspec.DecodeError:
                self.ending = Ending.CORRUPT
                return
            position = start + length
            self.offset = self._base + position
            yield record
        if any(content[position:end]):
            self.ending = Ending.TORN
