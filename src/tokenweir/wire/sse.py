r"""Server-sent events as bytes: an incremental scanner for the provider's streams, and an encoder for the few events that are ours.

The scanner does not care how the bytes were cut. It knows all three line ends (a `\r\n` may be cut in two), a byte order mark, comments and data of
several lines; it decodes nothing, so that the thousands of content events of an answer cost almost nothing. It holds at most one event, and of a monstrous
one nothing: that is skipped and counted. The relay does not use it to change bytes; it only lets `messages.py` watch them.
"""

from __future__ import annotations

import json
import re

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""An event longer than this is skipped. The provider's largest are tool results of some hundred kilobytes."""

_BOM = b"\xef\xbb\xbf"
_NAME = re.compile(r"[a-z][a-z_]{0,63}")


class SseScanner:
    r"""Cuts a stream into events: give it chunks, it gives back the events that are complete, as bytes with `\n` as the only line end."""

    __slots__ = ("_after_cr", "_fresh", "_pending", "_searched", "_skipping", "oversized")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0
        self._after_cr = False
        self._fresh = True
        self._skipping = False
        self.oversized = 0
        """How many events were skipped for their size."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, without their blank lines. Empty ones are part of the answer: they mean nothing."""
        if b"\r" in chunk or self._after_cr:
            chunk = self._with_plain_line_ends(chunk)
        if not self._pending and not self._fresh and chunk[-2:] == b"\n\n" and len(chunk) <= EVENT_BYTES_MAX:
            return chunk.split(b"\n\n")  # the usual case: whole events, nothing to keep
        return self._feed_slowly(chunk)

    def _with_plain_line_ends(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        ended_cr = chunk[-1] == 0x0D
        if self._after_cr and chunk[0] == 0x0A:
            chunk = chunk[1:]
        self._after_cr = ended_cr
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _feed_slowly(self, chunk: bytes) -> list[bytes]:
        pending = self._pending
        pending += chunk
        if self._fresh and not self._past_mark():
            return []
        end = pending.rfind(b"\n\n", max(self._searched - 1, 0))
        if end < 0:
            self._searched = len(pending)
            if self._skipping:
                del pending[:-1]
                self._searched = len(pending)
            elif len(pending) > EVENT_BYTES_MAX + 1:  # the last byte may be the first half of a blank line
                self._skipping = True
                self.oversized += 1
            return []
        events = bytes(pending[:end]).split(b"\n\n")
        del pending[: end + 2]
        self._searched = len(pending)
        if self._skipping:
            self._skipping = False
            events[0] = b""
        return [self._bounded(event) for event in events]

    def _bounded(self, event: bytes) -> bytes:
        if len(event) <= EVENT_BYTES_MAX:
            return event
        self.oversized += 1
        return b""

    def _past_mark(self) -> bool:
        """Drop a byte order mark; False while too little has come to know."""
        if len(self._pending) < 3 and _BOM.startswith(self._pending):
            return False
        if self._pending.startswith(_BOM):
            del self._pending[:3]
        self._fresh = False
        return True


def parse_event(event: bytes) -> tuple[bytes, bytes]:
    """The name and the data of an event; clients ignore an event whose name is empty, and so must the reader."""
    name = b""
    values: list[bytes] = []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            values.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(values)


def encode_event(name: str, value: object) -> bytes:
    """An event of ours. The data is one line of ASCII JSON, so no text in `value` can end a line or start a field, in any reader."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of an event")
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'), allow_nan=False)}\n\n".encode("ascii")
