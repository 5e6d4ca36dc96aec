"""Answers of the Messages API, whole or streamed: what was used, and how sure that is.

A stream states its usage several times, and the rule is *overlay*: start from `message_start`, let every field of each `message_delta` that says something
overwrite what was there. Never a sum, never a maximum: final counts go up (a server tool read pages) and down (compaction, refusal). The numbers of
`message_start` are placeholders for output, so a stream that is cut is charged for what was seen to stream. Content events are counted by their length and
never decoded. Change together with `usage_fields.py` (what the merged object means) and `sse.py` (where events end).
"""

from __future__ import annotations

import json

import msgspec

from tokenweir.errors import InvalidRequest
from tokenweir.usage import Certainty, Metered
from tokenweir.wire.plain_usage import read_plain
from tokenweir.wire.sse import SseScanner, parse_event
from tokenweir.wire.usage_fields import COUNTS, DETAILS, FLAG_BAD_FIELD, KNOWN, JsonObject, is_bad, is_count, read_metered

CHARS_PER_TOKEN = 4
"""The customary floor for output that was streamed and never counted."""
ID_CHARS_MAX = 128
MODEL_CHARS_MAX = 256
FIELDS_MAX = 256
"""Fields of a usage object that are kept; the provider has about a dozen."""
RAW_USAGE_BYTES_MAX = 256 * 1024
"""A larger usage object is read, and not kept: no honest one comes near, and it would fill the journal."""

FLAG_RESTARTED = "stream_restarted"
"""A second `message_start` came; the counts are those of the last message."""
FLAG_OVERSIZED_EVENT = "oversized_event"
FLAG_MISSING_COUNTS = "missing_counts"
"""The answer ended as it should, and its usage lacks the counts that every answer has."""


class Reading(msgspec.Struct):
    """What is known of an answer at one moment."""

    metered: Metered | None
    """None if no usage was seen."""
    certainty: Certainty
    message_id: str = ""
    stop_reason: str = ""
    raw_usage: bytes = b""
    """The usage object, merged if it was streamed, as compact JSON; every field is kept, known or not."""
    error_type: str = ""
    final: bool = False
    """Nothing billable can follow."""


def read_usage(usage: JsonObject | bytes, *, model: str, empty_refusal: bool = False) -> Metered:
    """Read a usage object as the provider writes it; raises `InvalidRequest` if it is not a JSON object."""
    fields = usage if isinstance(usage, dict) else _decode_object(usage)
    if fields is None:
        raise InvalidRequest('the usage is not a JSON object such as {"input_tokens": 10, "output_tokens": 5}')
    return read_metered(fields, model=model, empty_refusal=empty_refusal)


def read_message(body: bytes, *, requested_model: str) -> Reading:
    """Read a whole answer that came with status 200. Without usage in it nothing is known, except that an error envelope bills nothing."""
    try:
        message = _decode_message(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(None, Certainty.CEILING, final=True)
    if _text(message.type) == "error":
        return Reading(None, Certainty.NONE, error_type=_error_type(body), final=True)
    stop_reason = _text(message.stop_reason)
    empty_refusal = stop_reason == "refusal" and bytes(memoryview(message.content)[:8]).replace(b" ", b"") == b"[]"
    model = _model(_text(message.model), requested_model)
    message_id = _text(message.id)[:ID_CHARS_MAX]
    plain = read_plain(message.usage, model=model, empty_refusal=empty_refusal) if message.usage else None
    if plain is not None:
        return Reading(plain, Certainty.EXACT, message_id, stop_reason[:ID_CHARS_MAX], _compact(message.usage), final=True)
    usage = _decode_object(message.usage) if message.usage else None
    if not usage:
        return Reading(None, Certainty.CEILING, message_id, final=True)
    metered, certainty = _judged(read_metered(usage, model=model, empty_refusal=empty_refusal), usage, complete=True)
    return Reading(metered, certainty, message_id, stop_reason[:ID_CHARS_MAX], _compact(message.usage), final=True)


class StreamMeter:
    """Watches the bytes of one streamed answer. Feed it what is relayed, cut anyhow; ask it at any moment what is known."""

    __slots__ = (
        "_blocks", "_chars", "_counted", "_error", "_flags", "_message_id", "_model", "_requested_model", "_scanner", "_stated", "_stop_reason",
        "_usage", "final", "head_error", "opened",
    )  # fmt: skip

    def __init__(self, requested_model: str) -> None:
        self._requested_model = requested_model
        self._scanner = SseScanner()
        self._usage: JsonObject | None = None
        self._model = self._message_id = self._stop_reason = self._error = ""
        self._blocks = False
        self._chars = self._stated = 0
        self._counted = False
        self._flags: list[str] = []
        self.opened = False
        """`message_start` was seen: the request was accepted, and is billed."""
        self.final = False
        self.head_error: tuple[str, bytes] | None = None
        """Type and JSON of the error, if the stream said nothing before it: accepted with 200, and refused all the same."""

    @property
    def head_known(self) -> bool:
        """Whether it is known if the stream opens with a message or with an error."""
        return self.opened or self.final

    @property
    def output_seen(self) -> int:
        """Tokens of output so far: the final count once it was stated, and before that what a reading would estimate. Cheap enough for every chunk."""
        estimated = -(-self._chars // CHARS_PER_TOKEN)
        return self._stated if self._counted or self._stated > estimated else estimated

    def feed(self, chunk: bytes) -> bool:
        """Take note of more of the stream; True once nothing billable can follow."""
        for event in self._scanner.feed(chunk):
            if event[:27] == _CONTENT_DELTA:
                self._chars += _streamed_chars(event)
            elif event:
                self._read_event(event)
        return self.final

    def _read_event(self, event: bytes) -> None:
        name, data = parse_event(event)
        if name == b"content_block_delta":
            self._chars += _streamed_chars(data)
        elif name == b"content_block_start":
            # A `fallback` block marks where another model took over; it is not content.
            self._blocks = self._blocks or _FALLBACK_BLOCK not in data.replace(b" ", b"")
        elif name in _READ_EVENTS:
            value = _decode_object(data)
            if value is None or value.get("type", name.decode()) != name.decode():
                return
            if name == b"message_start":
                self._start(value.get("message"))
            elif name == b"message_delta":
                self._overlay(value)
            elif name == b"error":
                self._fail(value, data)
            else:
                self.final = True

    def _start(self, message: object) -> None:
        if not isinstance(message, dict):
            return
        if self.opened:
            self._note(FLAG_RESTARTED)
        self.opened = True
        self.final = self._blocks = self._counted = False
        self._chars = self._stated = 0
        self._stop_reason = ""
        self._message_id = _string(message.get("id"))
        self._model = _string(message.get("model"), MODEL_CHARS_MAX + 1)
        usage = message.get("usage")
        self._usage = {}
        if isinstance(usage, dict):
            self._merge(usage)

    def _overlay(self, value: JsonObject) -> None:
        delta, usage = value.get("delta"), value.get("usage")
        if self._usage is None:
            return  # nothing was opened: a delta of nothing
        if isinstance(usage, dict):
            self._merge(usage)
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if isinstance(reason, str) and reason:
            self._stop_reason = reason[:ID_CHARS_MAX]
            self._counted = isinstance(usage, dict) and is_count(usage.get("output_tokens"))

    def _merge(self, usage: JsonObject) -> None:
        """Every field that says something overwrites; a count that cannot be believed leaves the last one that can, and is flagged."""
        merged = self._usage if self._usage is not None else {}
        for name, field in usage.items():
            if field is None:
                if len(merged) < FIELDS_MAX:
                    merged.setdefault(name, None)
            elif (name in COUNTS and not is_count(field)) or (name in DETAILS and not isinstance(field, dict)):
                self._note(f"{FLAG_BAD_FIELD}:{name}")
            elif name in merged or name in KNOWN or len(merged) < FIELDS_MAX:
                merged[name] = field
        self._stated = merged.get("output_tokens") or 0  # a bad count was never merged

    def _note(self, flag: str) -> None:
        if flag not in self._flags:
            self._flags.append(flag)

    def _fail(self, value: JsonObject, data: bytes) -> None:
        error = value.get("error")
        self._error = _string(error.get("type")) if isinstance(error, dict) else ""
        self._error = self._error or "api_error"
        if not self.opened and not self.final:
            self.head_error = (self._error, data)
        self.final = True

    def reading(self) -> Reading:
        """What is known now. EXACT only if the final counts were seen; before `message_start`, or as long as no prompt was counted, nothing."""
        if self._usage is None:
            certainty = Certainty.NONE if self.head_error is not None else Certainty.CEILING
            return Reading(None, certainty, error_type=self._error, final=self.final)
        if not is_count(self._usage.get("input_tokens")) and f"{FLAG_BAD_FIELD}:input_tokens" not in self._flags:
            # Unknown is never zero: what was streamed could be counted, a prompt that nobody stated cannot. A count that was no count is flagged instead.
            return Reading(None, Certainty.CEILING, self._message_id, self._stop_reason, error_type=self._error, final=self.final)
        usage = self._usage
        if not self._counted:
            usage = {**usage, "output_tokens": self.output_seen}
        refused = self._counted and self._stop_reason == "refusal" and not self._blocks
        metered = read_metered(usage, model=_model(self._model, self._requested_model), empty_refusal=refused)
        oversized = [FLAG_OVERSIZED_EVENT] if self._scanner.oversized else []
        if self._flags or oversized:
            metered = _flagged(metered, *self._flags, *oversized)
        metered, certainty = _judged(metered, usage, complete=self._counted)
        return Reading(metered, certainty, self._message_id, self._stop_reason, _encode(self._usage), self._error, self.final)


_CONTENT_DELTA = b"event: content_block_delta\n"
_FALLBACK_BLOCK = b'"content_block":{"type":"fallback"'
_READ_EVENTS = frozenset({b"message_start", b"message_delta", b"message_stop", b"error"})


def _streamed_chars(event: bytes) -> int:
    """About how many characters of output a content event carries: the length of its last string, which is the text, the thinking or the partial JSON.

    Signatures and citations are not output. Without a string in the usual form, what is left beyond an empty event's length.
    """
    start = event.rfind(b'":"')
    if start < 0:
        return max(0, len(event) - 120)
    key = event[start - 9 : start]
    if key.endswith(_TEXT_KEYS):
        return max(0, len(event) - start - 6)
    return 0 if b"signature" in key or b"citations_delta" in event else max(0, len(event) - 120)


_TEXT_KEYS = (b'"text', b'"thinking', b"ial_json", b'"content')


def _judged(metered: Metered, usage: JsonObject, *, complete: bool) -> tuple[Metered, Certainty]:
    if complete and not (is_count(usage.get("input_tokens")) and is_count(usage.get("output_tokens"))):
        return _flagged(metered, FLAG_MISSING_COUNTS), Certainty.PARTIAL
    return metered, Certainty.EXACT if complete and not is_bad(metered.flags) else Certainty.PARTIAL


def _flagged(metered: Metered, *flags: str) -> Metered:
    return msgspec.structs.replace(metered, flags=tuple(dict.fromkeys((*metered.flags, *flags))))


# Decoding what comes from outside.


class _Message(msgspec.Struct, gc=False):
    type: msgspec.Raw = msgspec.Raw()
    id: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    stop_reason: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_any = msgspec.json.Decoder().decode
_decode_str = msgspec.json.Decoder(str).decode


def _decode_object(text: bytes | msgspec.Raw) -> JsonObject | None:
    """A JSON object, or None. Numbers that no machine word holds are kept as numbers that no count can be."""
    try:
        value = _decode_any(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            value = json.loads(bytes(text), parse_int=_integer, parse_constant=lambda _: -1)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= 18 else -1


def _text(raw: msgspec.Raw) -> str:
    try:
        return _decode_str(raw) if raw else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _string(value: object, chars_max: int = ID_CHARS_MAX) -> str:
    return value[:chars_max] if isinstance(value, str) else ""


def _model(stated: str, requested: str) -> str:
    return stated if 0 < len(stated) <= MODEL_CHARS_MAX and stated.isprintable() else requested


def _error_type(body: bytes) -> str:
    error = (_decode_object(body) or {}).get("error")
    return (_string(error.get("type")) if isinstance(error, dict) else "") or "api_error"


def _compact(raw: msgspec.Raw) -> bytes:
    return b"" if len(raw) > RAW_USAGE_BYTES_MAX else msgspec.json.format(bytes(raw), indent=-1)


def _encode(value: JsonObject) -> bytes:
    try:
        encoded = msgspec.json.encode(value)
    except (OverflowError, ValueError, RecursionError):
        encoded = json.dumps(value, separators=(",", ":")).encode()
    return encoded if len(encoded) <= RAW_USAGE_BYTES_MAX else b""
