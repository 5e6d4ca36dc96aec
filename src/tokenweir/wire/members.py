"""The members of one JSON object in a request body, read the same way by everyone; and one of them replaced.

The rule it protects: a body that two JSON readers could understand differently is refused with a sentence, and a body that is changed keeps every byte
that is not the change. Values stay raw bytes, and are searched or decoded by whoever needs them (`envelope.py`, to be changed with this).

Cost: one pass of the decoder, and a proof in O(fields) that nothing was repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from tokenweir.errors import InvalidRequest

Members: TypeAlias = dict[str, msgspec.Raw]

MEMBERS_MAX = 256
"""The provider knows about thirty top-level fields."""

_decode_members = msgspec.json.Decoder(Members).decode
_decode_str = msgspec.json.Decoder(str).decode


def decode(body: bytes) -> Members:
    """The members in the order of the body, values as they are written there; raises `InvalidRequest` if the body is not one JSON object."""
    try:
        return _decode_members(body)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; a request nests a few dozen levels at most") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if isinstance(error, msgspec.ValidationError):
            raise InvalidRequest("the body is not a JSON object; it must be one object in braces") from None
        if body[:3] == b"\xef\xbb\xbf":
            raise InvalidRequest("the body starts with a byte order mark; it must start with the JSON object") from None
        raise InvalidRequest(f"the body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}") from None


def prove_read_once(body: bytes, members: Members, plain: frozenset[str]) -> None:
    """Refuse a body that repeats a member, or spells one of `plain` with escapes; raises `InvalidRequest`.

    The decoder keeps the last of equal keys, another reader may keep the first. If the members written without any space are as long as the body, there
    was room for nothing else. Otherwise walk over the body, matching each kept value in place: a repeated member cannot fit the walk.
    """
    if len(members) > MEMBERS_MAX:
        raise InvalidRequest(f"the body has {len(members)} top-level fields; at most {MEMBERS_MAX} are read")
    length = 1 + 4 * len(members) if members else 2
    for key, value in members.items():
        length += len(key) + len(value)
    if length != len(body):
        for _ in _walk(body, members, plain):
            pass


def replaced(body: bytes, members: Members, name: str, value: bytes) -> bytes:
    """The body with the value of one member replaced, and every other byte as it was. `value` is JSON; the member must be there, and read once."""
    at = next(start for key, start in _walk(body, members, frozenset()) if key == name)
    return b"".join((memoryview(body)[:at], value, memoryview(body)[at + len(members[name]) :]))


def _walk(body: bytes, members: Members, plain: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Where the value of each member starts; raises `InvalidRequest` where the body and its members do not fit."""
    space = _SPACE.match
    at = _end(space(body, 0)) + 1  # the opening brace
    first = True
    for key, value in members.items():
        if not first:
            at += 1  # the comma
        first = False
        at = _end(space(body, at))
        token = _STRING.match(body, at)
        spelled = b"" if token is None else token[0]
        if spelled != b'"%b"' % key.encode():
            actual = _decode_str(spelled)
            if actual != key:
                raise _repeated(actual)
            if key in plain:
                raise InvalidRequest(f"the field {key!r} is spelled with escapes; write it plainly")
        at = _end(space(body, at + len(spelled))) + 1  # the colon
        at = _end(space(body, at))
        if not body.startswith(value, at):
            raise _repeated(key)
        yield key, at
        at = _end(space(body, at + len(value)))
        if body[at] not in b",}":
            raise _repeated(key)
    if members and body[at] == 0x2C:
        token = _STRING.match(body, _end(space(body, at + 1)))
        raise _repeated("" if token is None else _decode_str(token[0]))


def _end(match: re.Match[bytes] | None) -> int:
    return match.end() if match is not None else 0


def _repeated(key: str) -> InvalidRequest:
    return InvalidRequest(f"the field {shown(key)} occurs twice; two readers could take different ones, so send it once")


def shown(value: str | msgspec.Raw) -> str:
    """A value as an error may show it: short, and harmless in a log."""
    text = f'"{value}"' if isinstance(value, str) else bytes(memoryview(value)[:80]).decode(errors="replace")
    text = ascii(text)[1:-1]
    return text if len(text) <= 60 else text[:57] + "..."


_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
