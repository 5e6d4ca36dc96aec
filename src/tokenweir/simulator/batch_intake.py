"""Intake of a batch: its requests are cut out of the body while that comes in, and nothing of it is kept but the request that is not yet whole.

The body is one JSON object with one array. The scanner knows just enough JSON to find where each element of that array ends; whether an element is valid
is decided when it is whole. What the provider checks at once is checked here; `params` are only looked at when the line is worked on, as the provider does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tokenweir.simulator.directives import BATCH_PREFIX, NEVER, PREFIX, BadDirective, build
from tokenweir.simulator.intake import body_directives
from tokenweir.simulator.refusals import Refusal, invalid

LINES_MAX = 100_000
BODY_BYTES_MAX = 256 * 1024 * 1024
LINE_BYTES_MAX = 32 * 1024 * 1024
"""One request of a batch may be as long as one alone."""

_IDENT = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+', re.DOTALL)
_BLANK = re.compile(rb"[ \t\r\n]*+")


class Row(msgspec.Struct, frozen=True):
    """One request of a batch; `params` stay the bytes that came, so that an answer is the same as it would be alone."""

    custom_id: str
    params: msgspec.Raw


class _Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    custom_id: Any = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_found_decoder = msgspec.json.Decoder(_Found)
_row_decoder = msgspec.json.Decoder(Row)
_any_decoder = msgspec.json.Decoder()
read_row = _row_decoder.decode
"""A row that was taken in, from its bytes."""


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


class Intake:
    """What a batch asks for, row by row as it comes in."""

    def __init__(self) -> None:
        self.batch_directives: dict[str, str] = {}
        """Those of the whole batch that rows carry, later over earlier."""
        self.delays: dict[int, float] = {}
        """Rows with a delay of their own, by index."""
        self.count = 0
        self._seen: set[str] = set()

    def check(self, element: bytes) -> None:
        """Take one more row; raises Refusal as the provider does at once."""
        index = self.count
        if index >= LINES_MAX:
            raise invalid(f"requests: List should have at most {LINES_MAX} items after validation, not {LINES_MAX + 1}")
        try:
            found = _found_decoder.decode(element)
        except msgspec.ValidationError as error:
            raise invalid(f"requests.{index}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"The request body is not valid JSON: {error}") from None
        ident = found.custom_id
        if ident is msgspec.UNSET:
            raise invalid(f"requests.{index}.custom_id: Field required")
        if not isinstance(ident, str):
            raise invalid(f"requests.{index}.custom_id: Input should be a valid string")
        if not _IDENT.fullmatch(ident):
            raise invalid(f"requests.{index}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if ident in self._seen:
            raise invalid(f"requests.{index}.custom_id: custom_id '{ident}' is not unique: each custom_id must be unique within a batch")
        if found.params is msgspec.UNSET:
            raise invalid(f"requests.{index}.params: Field required")
        raw = bytes(found.params)
        if not raw.startswith(b"{"):
            raise invalid(f"requests.{index}.params: Input should be an object")
        self._seen.add(ident)
        self.count += 1
        if PREFIX.encode() in raw:
            self._note_directives(raw, index)

    def finish(self) -> None:
        """All rows are in."""
        if not self.count:
            raise invalid("requests: List should have at least 1 item after validation, not 0")
        self._seen = set()

    def _note_directives(self, raw: bytes, index: int) -> None:
        """A row may speak for itself and for its batch. What makes no sense is refused at once, so that no fault is rehearsed by mistake."""
        try:
            wanted = body_directives(_any_decoder.decode(raw))
            checked = build(wanted)
        except BadDirective as error:
            raise invalid(f"requests.{index}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"The request body is not valid JSON: {error}") from None
        self.batch_directives.update({name: value for name, value in wanted.items() if name.startswith(BATCH_PREFIX)})
        if checked.line_delay:
            self.delays[index] = NEVER if checked.line_delay < 0 else checked.line_delay


def _end(pattern: re.Pattern[bytes], buffer: bytearray, at: int) -> int:
    found = pattern.match(buffer, at)
    return found.end() if found else at
