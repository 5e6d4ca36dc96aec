"""Cuts the requests of a batch out of its body while that comes in; nothing of it is kept but the request that is not yet whole.

The body is one JSON object with one array. The scanner knows just enough JSON to find where each element of that array ends; whether an element is valid
is decided when it is whole, by `batch_intake`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from tokenweir.simulator.refusals import Refusal, invalid

LINE_BYTES_MAX = 32 * 1024 * 1024
"""One request of a batch may be as long as one alone."""

_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+', re.DOTALL)
_BLANK = re.compile(rb"[ \t\r\n]*+")


class Scanner:
    """Cuts the elements out of `{"requests": [...]}`, however the bytes are divided. Raises Refusal for anything else."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        """How far the buffer is understood; may lie one behind its end, after a backslash."""
        self._depth = 0
        self._in_string = False
        self._wanted = "{"
        self._seen_key = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The elements that are whole now."""
        self._buffer += piece
        while (found := self._step()) is not None:
            if found:
                yield found
        if len(self._buffer) > LINE_BYTES_MAX:
            raise Refusal(413, "request_too_large", "Request exceeds the maximum size")

    def close(self) -> None:
        """There is no more; raises Refusal unless the object is whole."""
        if self._wanted != "end":
            raise invalid("The request body is not valid JSON: Input data was truncated")

    def _step(self) -> bytes | None:
        """Understand a little more; None if that needs more bytes, empty if no element was completed."""
        if self._wanted == "element":
            return self._element()
        buffer = self._buffer
        del buffer[: _end(_BLANK, buffer, 0)]
        if not buffer:
            return None
        if self._wanted == "key":
            return self._key()
        found, wanted = chr(buffer[0]), self._wanted
        if wanted == "value":
            if found != "[":
                raise invalid("requests: Input should be a valid array")
            self._take("first")
        elif wanted in ("first", "next"):
            self._open_element(found)
        elif wanted == "first key" and found == "}":
            raise invalid("requests: Field required")
        elif wanted == "first key" and found == '"':
            self._wanted = "key"
        elif wanted == "comma" and found == ",":
            self._take("next")
        elif wanted == "comma" and found == "]":
            self._take("}")
        elif wanted == "}" and found == ",":
            self._take("key")
        elif wanted == "}" and found == "}":
            self._take("end")
        elif wanted == ":" and found == ":":
            self._take("value")
        elif wanted == "{" and found == "{":
            self._take("first key")
        elif wanted == "{":
            raise invalid("The request body must be a JSON object")
        else:
            raise invalid(f"The request body is not valid JSON: unexpected {found!r}")
        return b""

    def _take(self, wanted: str) -> None:
        del self._buffer[:1]
        self._wanted = wanted

    def _open_element(self, found: str) -> None:
        if found == "]" and self._wanted == "first":
            self._take("}")
        elif found == "{":
            self._wanted, self._at, self._depth = "element", 0, 0
        else:
            raise invalid("requests: Input should be a valid array of objects")

    def _key(self) -> bytes | None:
        """The object's only key."""
        buffer = self._buffer
        if buffer[0] != 0x22:
            raise invalid("The request body is not valid JSON: object keys must be strings")
        end = _end(_STRING, buffer, 1)
        if end >= len(buffer) or buffer[end] != 0x22:
            return None
        try:
            name = msgspec.json.decode(bytes(buffer[: end + 1]))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise invalid(f"The request body is not valid JSON: {error}") from None
        if name != "requests" or self._seen_key:
            raise invalid(f"{name}: Extra inputs are not permitted")
        self._seen_key = True
        del buffer[: end + 1]
        self._wanted = ":"
        return b""

    def _element(self) -> bytes | None:
        buffer = self._buffer
        while True:
            if self._in_string:
                end = _end(_STRING, buffer, self._at)
                if end >= len(buffer) or buffer[end] != 0x22:
                    # At the end, or at a backslash whose second half has not come.
                    self._at = end
                    return None
                self._in_string, self._at = False, end + 1
            self._at = _end(_STRUCTURE, buffer, self._at)
            if self._at >= len(buffer):
                return None
            found = buffer[self._at]
            self._at += 1
            if found == 0x22:
                self._in_string = True
            elif found in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return self._cut()

    def _cut(self) -> bytes:
        element = bytes(self._buffer[: self._at])
        del self._buffer[: self._at]
        self._wanted = "comma"
        return element


def _end(pattern: re.Pattern[bytes], buffer: bytearray, at: int) -> int:
    found = pattern.match(buffer, at)
    return found.end() if found else at
