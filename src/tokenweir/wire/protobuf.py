"""A reader for Protocol Buffers: just enough to read the few OTLP messages we take, as plain values under the names of OTLP's JSON.

The rule it protects: whatever the bytes are, the answer is a value or ValueError, in time and memory that the length of the input bounds: fields
nobody asked for are stepped over, not decoded, and nesting goes no deeper than the table of messages. See docs/decisions/0007-otlp-reader.md for why this
is ours. Change with it: `wire/telemetry.py`, which owns the tables.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["message", "text", "bytes", "int64", "uint64", "bool", "double", "fixed64", "sfixed64"]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WIRE: dict[Kind, int] = {
    "message": LENGTH,
    "text": LENGTH,
    "bytes": LENGTH,
    "int64": VARINT,
    "uint64": VARINT,
    "bool": VARINT,
    "double": FIXED64,
    "fixed64": FIXED64,
    "sfixed64": FIXED64,
}
_VARINT_BYTES_MAX = 10
_U64 = (1 << 64) - 1


class Field(msgspec.Struct, frozen=True):
    """What a field number means."""

    name: str
    kind: Kind
    message: str = ""
    """The name of the message it holds."""
    repeated: bool = False


Messages: TypeAlias = Mapping[str, Mapping[int, Field]]


def read_message(content: bytes, message: str, messages: Messages) -> dict[str, Any]:
    """The fields of a message; raises ValueError with a sentence if the bytes are not one."""
    return _read(content, 0, len(content), messages[message], messages)


def varint(number: int) -> bytes:
    """A whole number as Protocol Buffers write it."""
    number &= _U64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes | int) -> bytes:
    """One field with its tag: a number as varint, bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3 | VARINT) + varint(content)
    return varint(number << 3 | LENGTH) + varint(len(content)) + content


def _read(content: bytes, start: int, end: int, fields: Mapping[int, Field], messages: Messages) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = start
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError("a field number is out of range")
        known = fields.get(number)
        if known is None or _WIRE[known.kind] != wire:
            at = _skip(content, at, end, wire)
            continue
        value, at = _value(content, at, end, known, messages)
        if known.repeated:
            found.setdefault(known.name, []).append(value)
        else:
            found[known.name] = value
    return found


def _value(content: bytes, at: int, end: int, known: Field, messages: Messages) -> tuple[Any, int]:
    wire = _WIRE[known.kind]
    if wire == VARINT:
        number, at = _varint(content, at, end)
        if known.kind == "bool":
            return bool(number), at
        return (number - (1 << 64) if known.kind == "int64" and number >> 63 else number), at
    if wire == FIXED64:
        if end - at < 8:
            raise ValueError("the message ends in the middle of a number")
        form = {"double": "<d", "fixed64": "<Q", "sfixed64": "<q"}[known.kind]
        return struct.unpack_from(form, content, at)[0], at + 8
    length, at = _varint(content, at, end)
    if length > end - at:
        raise ValueError("a field is longer than what is left of its message")
    if known.kind == "message":
        return _read(content, at, at + length, messages[known.message], messages), at + length
    piece = content[at : at + length]
    if known.kind == "bytes":
        return piece.hex(), at + length
    try:
        return piece.decode("utf-8"), at + length
    except UnicodeDecodeError:
        raise ValueError("a text is not UTF-8") from None


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    number = shift = 0
    for place in range(at, min(end, at + _VARINT_BYTES_MAX)):
        byte = content[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & _U64, place + 1
        shift += 7
    raise ValueError("a number does not end")


def _skip(content: bytes, at: int, end: int, wire: int) -> int:
    """Where the field ends that nobody asked for."""
    if wire == VARINT:
        return _varint(content, at, end)[1]
    if wire == LENGTH:
        length, at = _varint(content, at, end)
    elif wire in (FIXED64, FIXED32):
        length = 8 if wire == FIXED64 else 4
    else:
        raise ValueError("groups are not used in OTLP")
    if length > end - at:
        raise ValueError("a field is longer than what is left of its message")
    return at + length
