"""Transcripts: the logs that Claude Code writes on its user's disk, one JSON object a line. One line in, one row or nothing out.

The format is internal to Claude Code and changes without notice, so everything is read with suspicion. The rules (docs/REPORT.md, "What is counted"):

- A row is a line of an assistant that states usage. `<synthetic>` messages and API errors never reached a model.
- One answer is written as several lines, again in resumed sessions, again by sub-agents. All rows with one `key` are one answer; of them the fullest
  counts, whole: counts of different rows are never mixed, because the rows may disagree about the model.
- Output counts of early lines are placeholders, and those of sub-agents race to this day: a row says whether it is `estimated`.

Change together with `usage_fields.py` (what a usage object means) and docs/REPORT.md.
"""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from tokenweir.periods import Micros, parse_instant, to_datetime, to_micros
from tokenweir.usage import Metered
from tokenweir.wire.messages import FLAG_MISSING_COUNTS
from tokenweir.wire.plain_usage import PlainUsage, plain_metered
from tokenweir.wire.usage_fields import is_bad, read_metered

MARK = b'"usage"'
"""A line without these bytes cannot become a row; looking for them is a hundred times cheaper than reading the line."""

SYNTHETIC = "<synthetic>"
"""The model of messages that Claude Code wrote itself."""
FLAG_MISSING_TIME = "missing_timestamp"
"""The line does not say when; the time given by the caller was taken."""

_CHARS_MAX = 256
_PATH_CHARS_MAX = 4_096


class TranscriptRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one line says about one answer of the API."""

    key: str
    """Rows with the same key are the same answer: message and request id, else message id, else the line's own id."""
    at_us: Micros
    metered: Metered
    message_id: str = ""
    request_id: str = ""
    """The provider's `request-id`, which joins this row with the gateway's entry and with telemetry."""
    uuid: str = ""
    session_id: str = ""
    agent_id: str = ""
    cwd: str = ""
    """The directory Claude Code worked in: the project. The folder's name on disk is a lossy spelling of it."""
    git_branch: str = ""
    client_version: str = ""
    stop_reason: str = ""
    sidechain: bool = False
    """Written by a sub-agent."""
    raw_usage: bytes = b""
    """The usage object as written, if the caller asked for it."""

    @property
    def estimated(self) -> bool:
        """Whether the counts may not be final: no end was stated, a sub-agent wrote them, or something in them could not be believed."""
        flags = self.metered.flags
        return (
            self.sidechain or not self.stop_reason or (bool(flags) and (is_bad(flags) or FLAG_MISSING_COUNTS in flags or FLAG_MISSING_TIME in flags))
        )


def read_line(line: bytes | bytearray | memoryview, *, otherwise_us: Micros, keep_raw: bool = False) -> TranscriptRow | None:
    """The row of a line; None if it is about something else. `otherwise_us` is its time if it states none, such as the file's.

    Raises ValueError if the line is no JSON object: it was torn, or is not a transcript.
    """
    entry = _read_entry(line, keep_raw=keep_raw)
    message = None if entry is None else entry.message
    if entry is None or entry.type != "assistant" or message is None or entry.isApiErrorMessage or message.model == SYNTHETIC:
        return None
    message_id, request_id, uuid = _cut(message.id), _cut(entry.requestId), _cut(entry.uuid)
    model = _cut(message.model) or "unknown"
    stop_reason = message.stop_reason or ""
    empty_refusal = stop_reason == "refusal" and bytes(message.content).replace(b" ", b"") == b"[]"
    usage = message.usage
    if isinstance(usage, PlainUsage):
        metered = plain_metered(usage, model=model, empty_refusal=empty_refusal) or _read_usage(
            msgspec.json.encode(usage), model, empty_refusal=empty_refusal
        )
    else:
        metered = None if usage is None else _read_usage(usage, model, empty_refusal=empty_refusal)
    if metered is None:
        return None
    if entry.timestamp is not None:
        at_us = to_micros(entry.timestamp)
    else:
        at_us = otherwise_us
        metered = _flagged(metered, FLAG_MISSING_TIME)
    return TranscriptRow(
        f"{message_id}:{request_id}" if message_id and request_id else message_id or uuid or hashlib.blake2b(line, digest_size=16).hexdigest(),
        at_us,
        metered,
        message_id,
        request_id,
        uuid,
        _cut(entry.sessionId),
        _cut(entry.agentId),
        (entry.cwd or "")[:_PATH_CHARS_MAX],
        _cut(entry.gitBranch),
        _cut(entry.version),
        stop_reason[:_CHARS_MAX],
        bool(entry.isSidechain),
        bytes(usage) if isinstance(usage, msgspec.Raw) and keep_raw else b"",
    )


def fuller(one: TranscriptRow, other: TranscriptRow) -> TranscriptRow:
    """Which of two rows of one answer counts, whatever order they were met in: the one of the higher rank."""
    if one.sidechain == other.sidechain:
        tokens, others = one.metered.usage.total, other.metered.usage.total
        if tokens != others:
            return one if tokens > others else other
    return one if rank(one) >= rank(other) else other


def rank(row: TranscriptRow) -> bytes:
    """Bytes that compare as rows do.

    The main transcript before a sub-agent's; then more tokens; then a stated end, then a stated speed. Rows equal in all that are copies, and the earliest
    is the original; what follows only makes the choice the same every time.
    """
    metered = row.metered
    head = _RANK(not row.sidechain, metered.usage.total, row.stop_reason != "", metered.speed != "", _LATE - row.at_us)
    return head + _place(row.session_id, row.cwd, metered.model)


@lru_cache(maxsize=4_096)
def _place(*names: str) -> bytes:
    return hashlib.blake2b("\0".join(names).encode("utf-8", "replace"), digest_size=8).digest()


_RANK = struct.Struct(">?Q??Q").pack
_LATE = 1 << 62
RANK_BYTES = 27


# Decoding what comes from outside: the fields by the names Claude Code gives them.


class _Words(msgspec.Struct, gc=False):
    type: str | None = None
    uuid: str | None = None
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    sessionId: str | None = None  # noqa: N815 - Claude Code's own spelling, as below
    agentId: str | None = None  # noqa: N815
    version: str | None = None
    cwd: str | None = None
    gitBranch: str | None = None  # noqa: N815
    requestId: str | None = None  # noqa: N815
    isSidechain: bool | None = None  # noqa: N815
    isApiErrorMessage: bool | None = None  # noqa: N815


class _MessageWords(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"")


class _PlainMessage(_MessageWords, gc=False):
    usage: PlainUsage | None = None


class _PlainEntry(_Words, gc=False):
    message: _PlainMessage | None = None


class _Message(_MessageWords, gc=False):
    usage: msgspec.Raw = msgspec.Raw(b"")


class _Entry(_Words, gc=False):
    message: _Message | None = None


_decode_plain = msgspec.json.Decoder(_PlainEntry).decode
_decode = msgspec.json.Decoder(_Entry).decode
_decode_any = msgspec.json.Decoder().decode


def _read_entry(line: bytes | bytearray | memoryview, *, keep_raw: bool) -> _PlainEntry | _Entry | None:
    """The short way if all is as usual, which one decode reads whole; then with the usage left to be read at length; then field by field."""
    if not keep_raw:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _decode_plain(line)
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode(line)
    return _read_leniently(line)


def _read_leniently(line: bytes | bytearray | memoryview) -> _Entry | None:
    """A line of which some field is not what it should be: that field is taken as not said. Raises ValueError if it is no JSON object at all."""
    entry = _object(line)
    if entry is None:
        raise ValueError("the line is not a JSON object")
    message = entry.get("message")
    if not isinstance(message, dict):
        return None
    try:
        parts = {name: msgspec.Raw(json.dumps(message[name]).encode()) for name in ("content", "usage") if name in message}
    except (ValueError, RecursionError) as error:
        raise ValueError("the line cannot be read") from error
    words: dict[str, Any] = {name: message[name] for name in ("id", "model", "stop_reason") if isinstance(message.get(name), str)}
    fields: dict[str, Any] = {name: entry[name] for name in _WORDS if isinstance(entry.get(name), str)}
    fields |= {name: entry.get(name) is True for name in _MARKS}
    try:
        fields["timestamp"] = to_datetime(parse_instant(entry["timestamp"])) if isinstance(entry.get("timestamp"), str) else None
    except (ValueError, OverflowError):
        fields["timestamp"] = None
    return _Entry(**fields, message=_Message(**words | parts))


_MARKS = ("isSidechain", "isApiErrorMessage")
_WORDS = tuple(name for name in _Words.__struct_fields__ if name not in (*_MARKS, "timestamp"))


def _object(text: bytes | bytearray | memoryview | msgspec.Raw) -> dict[str, Any] | None:
    """A JSON object, or None. Numbers that no machine word holds are kept as numbers that no count can be."""
    try:
        value = _decode_any(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            # A byte order mark, a half character: nothing that a count depends on.
            value = json.loads(
                bytes(text).decode("utf-8-sig", "replace"), parse_int=lambda d: int(d) if len(d) <= 18 else -1, parse_constant=lambda _: -1
            )
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _read_usage(usage: msgspec.Raw | bytes, model: str, *, empty_refusal: bool) -> Metered | None:
    """A usage object with something unusual in it."""
    fields = _object(usage)
    if not fields:
        return None
    metered = read_metered(fields, model=model, empty_refusal=empty_refusal)
    if is_bad(metered.flags):
        # A count that cannot be right is no reason to forget the others; it is flagged by its name already.
        return metered
    return metered if fields.keys() >= _NEEDED else _flagged(metered, FLAG_MISSING_COUNTS)


_NEEDED = frozenset({"input_tokens", "output_tokens"})


def _cut(word: str | None) -> str:
    return word[:_CHARS_MAX] if word else ""


def _flagged(metered: Metered, flag: str) -> Metered:
    return msgspec.structs.replace(metered, flags=(*metered.flags, flag))
