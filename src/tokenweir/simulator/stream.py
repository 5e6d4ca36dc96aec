"""The two forms of an answer: one JSON message, or server-sent events. Both are made from the same `Answer`.

Each event knows what it adds to the bill, so that a stream cut anywhere has a known cost. Event shapes and their order are the provider's: the start's
`output_tokens` is a placeholder, the delta's counts are cumulative and have no split of cache writes. Change together with `composition.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from tokenweir.simulator.composition import Answer, Outcome, Part, Tally
from tokenweir.simulator.directives import Directives
from tokenweir.simulator.truth import Bill
from tokenweir.usage import Segment, Usage

_encode = msgspec.json.encode
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_FUTURE = b'event: future_event\ndata: {"type":"future_event","usage":{"input_tokens":999999,"output_tokens":999999},"note":"ignore me"}\n\n'
_KINDS = {"text": b"text", "thinking": b"thinking"}


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One event, and what was generated with it."""

    raw: bytes
    part: Part | None = None
    tokens: int = 0
    done: bool = False


def usage_object(outcome: Outcome, answer: Answer, wanted: Directives) -> dict[str, Any]:
    """The provider's usage of a finished message."""
    usage = outcome.usage
    found = _input_counts(usage)
    found["cache_creation"] = {"ephemeral_5m_input_tokens": usage.cache_write_5m, "ephemeral_1h_input_tokens": usage.cache_write_1h}
    found["output_tokens"] = usage.output
    _details(found, outcome, answer, wanted)
    found["service_tier"] = answer.service_tier
    found["inference_geo"] = answer.inference_geo
    if answer.speed:
        found["speed"] = answer.speed
    return found


def bill_of(answer: Answer, outcome: Outcome, wanted: Directives) -> Bill:
    """What the journal of truth says of it."""
    return Bill(
        model=answer.model,
        usage=outcome.usage,
        segments=outcome.billed,
        raw=usage_object(outcome, answer, wanted),
        service_tier=answer.service_tier,
        speed=answer.speed,
        inference_geo=answer.inference_geo,
    )


def message_object(answer: Answer, outcome: Outcome, wanted: Directives) -> dict[str, Any]:
    """The whole message."""
    message = {
        "id": answer.message_id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [_whole(part) for part in answer.parts],
        "stop_reason": answer.stop_reason,
        "stop_sequence": answer.stop_sequence,
        "stop_details": answer.stop_details,
        "usage": usage_object(outcome, answer, wanted),
    }
    if wanted.no_usage:
        del message["usage"]
    if wanted.future:
        message["future_field"] = {"input_tokens": 999_999}
    return message


def frames(answer: Answer, wanted: Directives, *, event_tokens: int) -> Iterator[Frame]:
    """The events, in order, made as they are taken: a thousand long streams are not kept in memory."""
    yield Frame(_event("message_start", _start(answer, wanted)))
    if not answer.parts:
        yield Frame(PING)
    for index, part in enumerate(answer.parts):
        yield Frame(_event("content_block_start", {"type": "content_block_start", "index": index, "content_block": part.block}))
        if index == 0:
            yield Frame(PING)
        if wanted.future:
            yield Frame(_FUTURE)
        yield from _deltas(part, index, event_tokens)
        stop = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index
        yield Frame(stop, part, 0, done=True)
    for raw in _ending(answer, wanted):
        yield Frame(raw)


def tally_of(answer: Answer, sent: Iterable[Frame]) -> Tally:
    """What had been generated when so many events had gone out."""
    tally = Tally(answer)
    for frame in sent:
        note_frame(tally, frame)
    return tally


def note_frame(tally: Tally, frame: Frame) -> None:
    """One more event went out."""
    if frame.part is not None:
        tally.add(frame.part, frame.tokens, done=frame.done)


def _start(answer: Answer, wanted: Directives) -> dict[str, Any]:
    first = answer.stages[0]
    usage = _input_counts(first.prompt)
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": first.prompt.cache_write_5m, "ephemeral_1h_input_tokens": first.prompt.cache_write_1h}
    usage["output_tokens"] = answer.placeholder
    usage["service_tier"] = answer.service_tier
    usage["inference_geo"] = answer.inference_geo
    if answer.speed:
        usage["speed"] = answer.speed
    if wanted.unknown_usage:
        usage["audio_input_tokens"] = 7
    message: dict[str, Any] = {
        "id": answer.message_id,
        "type": "message",
        "role": "assistant",
        "model": first.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": usage,
    }
    if wanted.no_usage:
        del message["usage"]
    if wanted.future:
        message["future_field"] = {"input_tokens": 999_999}
    return {"type": "message_start", "message": message}


def _deltas(part: Part, index: int, event_tokens: int) -> Iterator[Frame]:
    if part.kind == "block":
        return
    if part.kind == "json":
        yield from _json_deltas(part, index)
        return
    if part.kind == "compaction":
        delta = {"type": "content_block_delta", "index": index, "delta": {"type": "compaction_delta", "content": part.text}}
        yield Frame(_event("content_block_delta", delta), part, part.tokens)
        return
    # The prose is ASCII letters and spaces: nothing to escape.
    name = _KINDS[part.kind]
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s_delta","%s":"' % (index, name, name)
    text, step = part.text.encode(), event_tokens * 4
    for at in range(0, len(text), step):
        piece = text[at : at + step]
        yield Frame(head + piece + b'"}}\n\n', part, len(piece) // 4)
    if part.kind == "thinking":
        delta = {"type": "content_block_delta", "index": index, "delta": {"type": "signature_delta", "signature": _signature(part)}}
        yield Frame(_event("content_block_delta", delta))


def _json_deltas(part: Part, index: int) -> Iterator[Frame]:
    """An empty first piece, as the provider sends, then the input in three pieces that share the tokens."""
    third = len(part.text) // 3 + 1
    pieces = [""] + [part.text[at : at + third] for at in range(0, len(part.text), third)]
    left = part.tokens
    for number, piece in enumerate(pieces):
        spent = left if number == len(pieces) - 1 else left // (len(pieces) - number)
        left -= spent
        delta = {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": piece}}
        yield Frame(_event("content_block_delta", delta), part, spent)


def _ending(answer: Answer, wanted: Directives) -> list[bytes]:
    outcome = Tally(answer).add_all().outcome()
    usage = outcome.usage
    counts: dict[str, Any] = {} if wanted.bare_delta else _input_counts(usage)
    counts["output_tokens"] = usage.output
    if not wanted.bare_delta:
        _details(counts, outcome, answer, wanted)
    delta = {"stop_reason": answer.stop_reason, "stop_sequence": answer.stop_sequence, "stop_details": answer.stop_details}
    last: dict[str, Any] = {"type": "message_delta", "delta": delta, "usage": counts}
    found = []
    if wanted.two_deltas:
        early = {"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}, "usage": {"output_tokens": usage.output // 2}}
        found.append(_event("message_delta", early))
    if wanted.future:
        counts["future_details"] = {"kind": "none"}
        found.append(_FUTURE)
    if wanted.no_usage:
        del last["usage"]
    found.append(_event("message_delta", last))
    if not wanted.no_stop:
        found.append(STOP)
    return found


def _details(found: dict[str, Any], outcome: Outcome, answer: Answer, wanted: Directives) -> None:
    if answer.shows_thinking:
        found["output_tokens_details"] = {"thinking_tokens": outcome.usage.thinking}
    if answer.shows_tools:
        found["server_tool_use"] = {"web_search_requests": outcome.usage.web_searches, "web_fetch_requests": 0}
    if answer.shows_iterations:
        found["iterations"] = [_iteration(segment, len(outcome.segments)) for segment in outcome.segments]
    if wanted.unknown_usage:
        found["audio_input_tokens"] = 7


def _iteration(segment: Segment, count: int) -> dict[str, Any]:
    usage = segment.usage
    found: dict[str, Any] = {"type": segment.kind, **_input_counts(usage), "output_tokens": usage.output}
    found["cache_creation"] = {"ephemeral_5m_input_tokens": usage.cache_write_5m, "ephemeral_1h_input_tokens": usage.cache_write_1h}
    if segment.kind in ("advisor_message", "fallback_message") or count == 2:
        found["model"] = segment.model
    return found


def _input_counts(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.uncached_input,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
    }


def _whole(part: Part) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    if part.kind == "thinking":
        return {"type": "thinking", "thinking": part.text, "signature": _signature(part)}
    if part.kind == "compaction":
        return {"type": "compaction", "content": part.text}
    return {**part.block, "input": msgspec.json.decode(part.text)} if part.kind == "json" else part.block


def _signature(part: Part) -> str:
    return f"c2ltdWxhdGVk{part.tokens:08x}" * 4


def _event(name: str, value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode(value))
