"""Frames: how one journal record lies in a segment file, and what a reader may conclude from what it finds.

A frame is `u32 length | u32 CRC-32 of the body | body`, little-endian, the body one MessagePack array (`ledger.entries.Intent` or `Settlement`). A length of
zero, or the end of the file, is the end for now. The rule it protects: nothing is skipped in silence; what cannot be read is returned as such, with its place.
Change with it: `journal.py` (the writer), `workers/journal_tail.py` (the reader).
"""

from __future__ import annotations

import enum
import zlib
from struct import Struct as Layout
from typing import Final

import msgspec

from tokenweir.ledger.entries import Intent, Record, Settlement

HEADER: Final = Layout("<II")
HEADER_BYTES: Final = HEADER.size
FRAME_BYTES_MAX: Final = 1024 * 1024
"""No record is larger; a greater length is damage, not a frame."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Intent | Settlement)


class Tail(enum.Enum):
    """What stands behind the last good frame."""

    CLEAN = enum.auto()
    """Nothing, or zeros: the end for now."""
    TORN = enum.auto()
    """The beginning of a frame: still being written, or cut off by a crash."""
    CORRUPT = enum.auto()
    """Bytes that are not a frame, and more behind them: the file was damaged."""


class Scan(msgspec.Struct, frozen=True):
    """The frames of a stretch of a segment."""

    records: list[tuple[int, Record]]
    """Each record with the number of bytes scanned up to its end."""
    length: int
    """How many bytes were read as good frames."""
    tail: Tail


def encode_frame(record: Record) -> bytes:
    """The record as a frame. Raises ValueError if no reader would take it."""
    body = _ENCODER.encode(record)
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"a record of {len(body)} bytes is too large for the journal")
    return HEADER.pack(len(body), zlib.crc32(body)) + body


def scan(content: bytes, *, more: bool = False) -> Scan:
    """Read all whole frames from the start of `content`. `more` says that the file goes on behind it, so that a cut frame is no damage."""
    records: list[tuple[int, Record]] = []
    view, end, at = memoryview(content), len(content), 0
    unpack, crc32, decode = HEADER.unpack_from, zlib.crc32, _DECODER.decode
    while True:
        if end - at < HEADER_BYTES:
            tail = Tail.TORN if _anything(content, at) else Tail.CLEAN
            break
        length, checksum = unpack(content, at)
        if length == 0:
            tail = Tail.CORRUPT if _anything(content, at) else Tail.CLEAN
            break
        after = at + HEADER_BYTES + length
        if after > end and length <= FRAME_BYTES_MAX:
            tail = Tail.TORN
            break
        body = view[at + HEADER_BYTES : after]
        if length > FRAME_BYTES_MAX or crc32(body) != checksum:
            # With nothing behind it, it may be a write that a crash cut off (or that is just happening); otherwise the file was damaged.
            tail = Tail.CORRUPT if length > FRAME_BYTES_MAX or more or _anything(content, after) else Tail.TORN
            break
        try:
            records.append((after, decode(body)))
        except msgspec.MsgspecError:
            tail = Tail.CORRUPT
            break
        at = after
    return Scan(records, at, tail)


def next_frame(content: bytes, start: int) -> int | None:
    """Where, from `start` on, the next good frame begins: for going on behind damage. None if there is none."""
    for at in range(start, len(content) - HEADER_BYTES):
        length, checksum = HEADER.unpack_from(content, at)
        after = at + HEADER_BYTES + length
        if 0 < length <= FRAME_BYTES_MAX and after <= len(content) and zlib.crc32(content[at + HEADER_BYTES : after]) == checksum:
            return at
    return None


def _anything(content: bytes, at: int) -> bool:
    """Whether there is anything but zeros from `at` on; compares in one go, since a reserve is megabytes of them."""
    rest = content[at:]
    return rest != bytes(len(rest))
