"""Answers are read as they were meant: whole or streamed, however cut, recorded or hostile."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import FIXTURES, needs_fixtures
from tokenweir.errors import InvalidRequest
from tokenweir.usage import Certainty, Usage
from tokenweir.wire.messages import Reading, StreamMeter, read_message, read_usage
from tokenweir.wire.sse import encode_event

MODEL = "claude-sonnet-5-5"
START_USAGE = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 1,
    "service_tier": "standard",
    "inference_geo": "global",
}


def event(kind: str, **fields: Any) -> bytes:
    return encode_event(kind, {"type": kind, **fields})


def start(usage: dict[str, Any] | None = None, **fields: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": MODEL, "stop_reason": None}
    return event("message_start", message={**message, "usage": START_USAGE if usage is None else usage, **fields})


def text(words: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


def end(stop_reason: str | None = "end_turn", **usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage=usage)


BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
STOP = event("message_stop")
PING = event("ping")
OVERLOADED = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
WHOLE = start() + PING + BLOCK + text("Hello ") + text("there") + event("content_block_stop", index=0) + end(output_tokens=15) + STOP


def reading_of(*chunks: bytes) -> Reading:
    meter = StreamMeter("asked-for")
    for chunk in chunks:
        meter.feed(chunk)
    return meter.reading()


# Recorded traffic.


def corpus() -> list[dict[str, Any]]:
    assert FIXTURES is not None
    lines = (FIXTURES / "anthropic" / "corpus.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


def stream_of(row: dict[str, Any]) -> bytes | None:
    if row.get("sse") is not None:
        return str(row["sse"]).encode()
    if row.get("events") is not None:
        return b"".join(encode_event(each["type"], each) for each in row["events"])
    return None


def said(usage: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (usage or {}).items() if value is not None}


# Rows that are not answers of the Messages API: the retired completions, files, token counts, and two refusals by status.
def is_answer(row: dict[str, Any]) -> bool:
    return row["path"].split("?")[0] == "/v1/messages" and row["status"] == 200


@needs_fixtures
def test_every_recorded_answer_is_read_exactly():
    """No row is excepted: the four made-up or concatenated streams with several `message_start` are read as their last message, and flagged."""
    answers = [row for row in corpus() if is_answer(row)]
    restarted = []
    for row in answers:
        stream = stream_of(row)
        reading = read_message(json.dumps(row["response"]).encode(), requested_model="asked-for") if stream is None else reading_of(stream)
        assert reading.certainty is Certainty.EXACT, row["source"]
        assert said(json.loads(reading.raw_usage)) == said(row["usage"]), row["source"]
        assert reading.stop_reason == (row["stop_reason"] or ""), row["source"]
        assert reading.metered is not None
        assert reading.metered.usage == read_usage(row["usage"], model=row["model"]).usage
        assert not [flag for flag in reading.metered.flags if "field" in flag or "mismatch" in flag], row["source"]
        if "stream_restarted" in reading.metered.flags:
            restarted.append(row["source"].rpartition("/")[2])
    assert len(answers) >= 256
    assert sorted(restarted) == [
        "anthropic-tool-search-deferred-bm25.chunks.txt",
        "anthropic-tool-search-deferred-regex.chunks.txt",
        "anthropic-tool-search-regex.1.chunks.txt",
        "spliced-message-start.chunks.txt",
    ]


@needs_fixtures
def test_recorded_streams_read_the_same_however_they_are_cut():
    """In two at every byte for short streams, at random for long ones, and byte by byte for all."""
    pick = random.Random(7)
    streams = [stream for row in corpus() if (stream := stream_of(row)) is not None]
    for stream in streams:
        expected = reading_of(stream)
        assert reading_of(*(stream[at : at + 1] for at in range(len(stream)))) == expected
        if len(stream) <= 2_500:
            cuts = [[cut] for cut in range(1, len(stream))]
        else:
            cuts = [sorted(pick.randrange(len(stream)) for _ in range(pick.randrange(1, 40))) for _ in range(6)]
        for points in cuts:
            edges = [0, *points, len(stream)]
            assert reading_of(*(stream[a:b] for a, b in itertools.pairwise(edges))) == expected
    assert len(streams) >= 90


@needs_fixtures
def test_recorded_streams_read_the_same_with_other_line_ends():
    for row in corpus():
        stream = stream_of(row)
        if stream is not None:
            plain = stream.replace(b"\r\n", b"\n")
            for line_end in (b"\r\n", b"\r"):
                assert reading_of(plain.replace(b"\n", line_end)) == reading_of(stream)


@needs_fixtures
def test_a_recorded_stream_is_never_exact_before_its_final_counts():
    for row in corpus():
        stream = stream_of(row)
        if stream is None or len(stream) > 20_000 or b"event: message_start" not in stream:
            continue
        meter = StreamMeter("asked-for")
        for at in range(0, len(stream), 97):
            meter.feed(stream[at : at + 97])
            reading, seen = meter.reading(), stream[: at + 97]
            assert (reading.metered is not None) == meter.opened
            if b"event: message_delta" not in seen:
                assert reading.certainty is (Certainty.PARTIAL if meter.opened else Certainty.CEILING)


# Streams.


def test_a_plain_stream_is_read_exactly():
    meter = StreamMeter("asked-for")
    assert (meter.head_known, meter.opened, meter.feed(PING)) == (False, False, False)
    assert meter.reading() == Reading(None, Certainty.CEILING)
    assert meter.feed(start()) is False
    assert (meter.head_known, meter.opened, meter.head_error) == (True, True, None)
    assert meter.feed(BLOCK + text("x") + end(output_tokens=15)) is False
    assert meter.feed(STOP) is True
    reading = meter.reading()
    assert reading.metered is not None
    assert reading.metered.usage == Usage(uncached_input=25, output=15)
    assert [(each.kind, each.model, each.usage) for each in reading.metered.segments] == [("message", MODEL, reading.metered.usage)]
    assert (reading.metered.model, reading.metered.service_tier, reading.metered.inference_geo) == (MODEL, "standard", "global")
    assert (reading.certainty, reading.message_id, reading.stop_reason, reading.final) == (Certainty.EXACT, "msg_1", "end_turn", True)
    assert json.loads(reading.raw_usage) == {**START_USAGE, "output_tokens": 15}
    assert b" " not in reading.raw_usage


def test_every_cut_of_a_plain_stream_reads_the_same():
    for cut in range(len(WHOLE)):
        assert reading_of(WHOLE[:cut], WHOLE[cut:]) == reading_of(WHOLE)


def test_final_counts_overwrite_upwards_and_downwards():
    """Never a sum, never a maximum: web search raised a recorded input from 2,068 to 22,397, a refusal lowered one from 612 to 28."""
    for first, last in ((2_068, 22_397), (612, 28), (60_385, 612)):
        reading = reading_of(start({**START_USAGE, "input_tokens": first, "output_tokens": 8}), end(input_tokens=last, output_tokens=3))
        assert reading.metered is not None
        assert reading.metered.usage == Usage(uncached_input=last, output=3)


def test_later_deltas_overwrite_earlier_ones_and_null_says_nothing():
    reading = reading_of(start(), end(None, output_tokens=50, cache_read_input_tokens=7), end(output_tokens=40, input_tokens=None))
    assert reading.metered is not None
    assert reading.metered.usage == Usage(uncached_input=25, cache_read=7, output=40)
    assert reading.certainty is Certainty.EXACT


def test_an_explicit_zero_is_a_number():
    reading = reading_of(start({**START_USAGE, "cache_read_input_tokens": 900}), end(output_tokens=0, input_tokens=0, cache_read_input_tokens=0))
    assert reading.metered is not None
    assert (reading.metered.usage, reading.certainty) == (Usage(), Certainty.EXACT)


def test_hour_writes_come_from_the_split_and_the_rest_of_the_final_total_is_for_five_minutes():
    """Code execution with caching: the split of message_start sums to 3,068, the final total is 3,337."""
    usage = {
        **START_USAGE,
        "cache_creation_input_tokens": 3_068,
        "cache_creation": {"ephemeral_5m_input_tokens": 68, "ephemeral_1h_input_tokens": 3_000},
    }
    reading = reading_of(start(usage), end(output_tokens=9, cache_creation_input_tokens=3_337, cache_read_input_tokens=6_289))
    assert reading.metered is not None
    assert reading.metered.usage == Usage(25, 337, 3_000, 6_289, 9)


def test_events_of_the_future_and_nameless_frames_are_ignored():
    future = event("future_event", usage={"input_tokens": 99, "output_tokens": 99})
    nameless = end(output_tokens=99).replace(b"event: message_delta\n", b"")
    misnamed = end(output_tokens=99).replace(b"event: message_delta", b"event: future_event")
    contradicting = event("message_delta", usage={"output_tokens": 99}, delta={"stop_reason": "x"}).replace(b'"message_delta"', b'"other"')
    noise = b": comment\n\n" + future + nameless + misnamed + contradicting + b"event: message_delta\ndata: not json\n\n" + b"event: message_stop\n\n"
    plain = start() + text("Hello") + end(output_tokens=15)
    assert reading_of(start(), noise, text("Hello"), noise, end(output_tokens=15), noise) == reading_of(plain)


def test_a_stream_without_message_stop_is_exact_and_not_final():
    reading = reading_of(start(), end(output_tokens=5))
    assert (reading.certainty, reading.final) == (Certainty.EXACT, False)


def test_a_second_message_start_begins_anew_and_is_flagged():
    reading = reading_of(start(), text("x" * 400), end(output_tokens=100), start({**START_USAGE, "input_tokens": 17}), end(output_tokens=65))
    assert reading.metered is not None
    assert (reading.metered.usage, reading.metered.flags) == (Usage(uncached_input=17, output=65), ("stream_restarted",))


def test_the_model_is_what_was_asked_for_if_the_answer_does_not_say():
    for model in (None, "", 7, "m" * 300, "a\nb"):
        reading = reading_of(start(model=model), end(output_tokens=1))
        assert reading.metered is not None
        assert reading.metered.model == "asked-for"


# Cut streams.


@pytest.mark.parametrize("streamed", [0, 1, 4, 5, 400, 4_001])
def test_a_cut_stream_is_charged_for_what_was_streamed(streamed):
    """message_start says 1 output token; that is a placeholder, and billing it is how others lost whole answers."""
    reading = reading_of(start(), BLOCK, *(text("x") for _ in range(streamed)))
    assert reading.metered is not None
    assert reading.metered.usage == Usage(uncached_input=25, output=max(1, math.ceil(streamed / 4)))
    assert (reading.certainty, reading.stop_reason, reading.final) == (Certainty.PARTIAL, "", False)


@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "thinking", "partial_json"]), st.text(st.characters(min_codepoint=32, max_codepoint=126))), max_size=8
    )
)
def test_streamed_output_is_estimated_close_to_its_characters(parts):
    kinds = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
    deltas = [event("content_block_delta", index=1, delta={"type": kinds[key], key: words}) for key, words in parts]
    reading = reading_of(start({**START_USAGE, "output_tokens": 0}), *deltas)
    assert reading.metered is not None
    characters = sum(len(words) for _, words in parts)
    escapes = sum(len(json.dumps(words)) - 2 - len(words) for _, words in parts)
    assert math.ceil(characters / 4) <= reading.metered.usage.output <= math.ceil((characters + escapes) / 4)


def test_signatures_and_citations_are_no_output():
    signature = event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "A" * 4_000})
    citation = {"type": "char_location", "cited_text": "c" * 4_000, "document_title": "t" * 400}
    cited = event("content_block_delta", index=0, delta={"type": "citations_delta", "citation": citation})
    reading = reading_of(start(), signature, cited, text("12345678"))
    assert reading.metered is not None
    assert reading.metered.usage.output == 2


def test_deltas_in_another_writing_are_still_counted():
    spaced = b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "%b"}}\n\n' % (
        b"x" * 800
    )
    nameless_space = text("x" * 800).replace(b"event: content", b"event:content")
    for delta in (spaced, nameless_space):
        reading = reading_of(start(), delta)
        assert reading.metered is not None
        assert 190 <= reading.metered.usage.output <= 210


def test_an_estimate_never_lowers_what_was_stated():
    reading = reading_of(start(), text("abcd"), end(None, output_tokens=70))
    assert reading.metered is not None
    assert (reading.metered.usage.output, reading.certainty) == (70, Certainty.PARTIAL)


def test_a_stop_reason_without_counts_is_not_exact():
    """The placeholder of message_start is no final count, whatever the stream says of its end."""
    for last in (end("end_turn"), event("message_delta", delta={"stop_reason": "end_turn"}, usage=None)):
        reading = reading_of(start(), text("x" * 40), last, STOP)
        assert reading.metered is not None
        assert (reading.certainty, reading.metered.usage.output, reading.final) == (Certainty.PARTIAL, 10, True)


def test_an_error_in_the_middle_is_final_and_partial():
    meter = StreamMeter("asked-for")
    assert meter.feed(start() + text("x" * 40) + OVERLOADED) is True
    reading = meter.reading()
    assert reading.metered is not None
    assert (reading.certainty, reading.error_type, reading.metered.usage.output) == (Certainty.PARTIAL, "overloaded_error", 10)
    assert meter.head_error is None


def test_an_error_at_the_head_is_a_refusal():
    """HTTP 200, then `overloaded_error` before anything else: nothing is billed, and another attempt may be made."""
    for lead in (b"", PING, b": hello\n\n"):
        meter = StreamMeter("asked-for")
        assert meter.feed(lead + OVERLOADED) is True
        assert meter.head_known
        assert meter.head_error == ("overloaded_error", b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}')
        assert meter.reading() == Reading(None, Certainty.NONE, error_type="overloaded_error", final=True)


def test_an_error_without_a_type_is_an_api_error():
    meter = StreamMeter("asked-for")
    meter.feed(event("error", error="?"))
    assert meter.head_error is not None
    assert meter.head_error[0] == "api_error"


# Refusals.


def test_a_refusal_without_content_is_read_and_not_billed():
    reading = reading_of(start(), end("refusal", output_tokens=5), STOP)
    assert reading.metered is not None
    assert (reading.metered.segments, reading.metered.flags) == ((), ("unbilled_refusal",))
    assert (reading.metered.usage, reading.certainty) == (Usage(uncached_input=25, output=5), Certainty.EXACT)


def test_a_refusal_with_content_is_billed():
    reading = reading_of(start(), BLOCK, text("I"), end("refusal", output_tokens=5), STOP)
    assert reading.metered is not None
    assert len(reading.metered.segments) == 1


def test_a_marker_of_fallback_is_no_content():
    marker = event("content_block_start", index=0, content_block={"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}})
    reading = reading_of(start(), marker, end("refusal", output_tokens=0))
    assert reading.metered is not None
    assert reading.metered.segments == ()


# Hostile streams.


@pytest.mark.parametrize("bad", [-1, 1.5, "7", True, [], {}, 10**10, 2**63, 10**30, 1e300])
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"])
def test_a_count_that_cannot_be_believed_leaves_the_last_one_and_is_never_exact(name, bad):
    usage = {**START_USAGE, "output_tokens": 4, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    reading = reading_of(start(usage), end(**{"output_tokens": 4, name: bad}), STOP)
    assert reading.metered is not None
    assert reading.metered.usage == Usage(25, 2, 0, 3, 4)
    assert reading.metered.flags == (f"bad_usage_field:{name}",)
    assert reading.certainty is Certainty.PARTIAL


def test_numbers_beyond_any_machine_word_do_no_harm():
    digits = b"9" * 100_000
    hostile = end(output_tokens=777).replace(b"777", digits)
    reading = reading_of(start(), hostile, STOP)
    assert reading.metered is not None
    assert (reading.metered.usage, reading.certainty) == (Usage(uncached_input=25, output=1), Certainty.PARTIAL)
    assert reading_of(start().replace(b":25", b":" + digits), end(output_tokens=3)).certainty is Certainty.PARTIAL


def test_a_swelling_usage_holds_no_memory():
    meter = StreamMeter("asked-for")
    meter.feed(start())
    for number in range(2_000):
        meter.feed(end(None, **{f"n{number}": 1, "input_tokens": -1}))
    reading = meter.reading()
    assert reading.metered is not None
    assert reading.metered.usage.uncached_input == 25
    assert len(json.loads(reading.raw_usage)) <= 256
    assert len(reading.metered.flags) < 40
    meter.feed(end(output_tokens=3, iterations=None, server_tool_use={"web_search_requests": 2}))
    last = meter.reading().metered
    assert last is not None
    assert (last.usage.output, last.usage.web_searches) == (3, 2)
    assert reading_of(start(), end(output_tokens=3, note="x" * 300_000)).raw_usage == b""
    assert read_message(answer(usage={**START_USAGE, "note": "x" * 300_000}), requested_model="m").raw_usage == b""


@given(st.binary(max_size=200), st.integers(0, 6))
def test_noise_in_a_stream_never_raises(noise, place):
    parts = [start(), BLOCK, text("Hi"), end(output_tokens=15), STOP]
    parts.insert(place, noise)
    meter = StreamMeter("asked-for")
    for part in parts:
        meter.feed(part)
        meter.reading()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*START_USAGE, "iterations", "type", "model", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*START_USAGE, "iterations", "server_tool_use", "output_tokens_details", "new"]), _JSON), st.booleans())
def test_any_usage_is_read_without_credit(usage, streamed):
    written = json.dumps(usage).encode()
    if streamed:
        reading = reading_of(b'event: message_start\ndata: {"type":"message_start","message":{"usage":%b}}\n\n' % written, end(output_tokens=1))
    else:
        reading = read_message(b'{"type":"message","usage":%b}' % written, requested_model="m")
    if reading.metered is not None:
        for counted in (reading.metered.usage, *(each.usage for each in reading.metered.segments)):
            assert all(0 <= count <= 10**9 for count in msgspec.structs.astuple(counted))
            assert counted.thinking <= counted.output
        json.loads(reading.raw_usage)


# Whole answers.


def answer(**fields: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [{"type": "text", "text": "Hi"}]}
    return json.dumps({**message, "stop_reason": "end_turn", "usage": {**START_USAGE, "output_tokens": 9}, **fields}, indent=1).encode()


def test_a_whole_answer_is_read_exactly():
    reading = read_message(answer(), requested_model="asked-for")
    assert reading.metered is not None
    assert (reading.metered.usage, reading.metered.model) == (Usage(uncached_input=25, output=9), MODEL)
    assert (reading.certainty, reading.message_id, reading.stop_reason, reading.final) == (Certainty.EXACT, "msg_1", "end_turn", True)
    assert reading.raw_usage == json.dumps({**START_USAGE, "output_tokens": 9}, separators=(",", ":")).encode()


def test_a_whole_answer_and_its_stream_are_the_same_reading():
    assert read_message(answer(usage={**START_USAGE, "output_tokens": 15}), requested_model="m") == reading_of(WHOLE)


def test_a_whole_refusal_is_billed_only_with_content():
    refused = read_message(answer(stop_reason="refusal", content=[]), requested_model="m")
    assert refused.metered is not None
    assert refused.metered.segments == ()
    spoken = read_message(answer(stop_reason="refusal"), requested_model="m")
    assert spoken.metered is not None
    assert len(spoken.metered.segments) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b"{}", b'{"usage":null}', b'{"usage":{}}', b'{"usage":[1]}', b'{"usage":', b"\xff", b"[" * 100_000]
)
def test_an_answer_without_usage_is_unknown_never_zero(body):
    reading = read_message(body, requested_model="m")
    assert (reading.metered, reading.certainty, reading.raw_usage) == (None, Certainty.CEILING, b"")


def test_an_error_with_status_200_bills_nothing():
    reading = read_message(b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', requested_model="m")
    assert reading == Reading(None, Certainty.NONE, error_type="overloaded_error", final=True)


def test_an_answer_that_lacks_counts_is_not_exact():
    reading = read_message(answer(usage={"input_tokens": 5}), requested_model="m")
    assert reading.metered is not None
    assert (reading.certainty, reading.metered.flags) == (Certainty.PARTIAL, ("missing_counts",))


def test_unknown_fields_are_kept_in_the_raw_usage():
    usage = {**START_USAGE, "holographic_tokens": 12345678901234567890123, "note": {"é": [1.5]}}
    reading = read_message(answer(usage=usage), requested_model="m")
    assert json.loads(reading.raw_usage) == usage
    assert reading.metered is not None
    assert reading.metered.flags == ("unknown_usage_field:holographic_tokens", "unknown_usage_field:note.?")
    assert json.loads(reading_of(start(usage), end(output_tokens=1)).raw_usage).keys() == usage.keys()


# While the stream runs.


def test_what_was_seen_of_the_output_grows_as_it_streams_and_ends_at_the_stated_count():
    meter = StreamMeter("m")
    assert meter.output_seen == 0
    meter.feed(start() + BLOCK)
    assert meter.output_seen == 1, "what message_start states"
    meter.feed(text("x" * 40))
    assert meter.output_seen == 10
    meter.feed(text("y" * 41))
    assert meter.output_seen == 21, "rounded up"
    meter.feed(end(output_tokens=7))
    assert meter.output_seen == 7, "the final count is the truth, also when it is less"


def test_a_stream_that_starts_again_is_seen_from_its_beginning():
    meter = StreamMeter("m")
    meter.feed(start() + BLOCK + text("x" * 4000))
    meter.feed(start({"input_tokens": 25}) + BLOCK)
    assert meter.output_seen == 0


@given(st.lists(st.one_of(st.integers(0, 400).map(lambda n: text("x" * n)), st.integers(0, 900).map(lambda n: end(None, output_tokens=n)))))
def test_at_every_moment_a_reading_books_the_output_that_was_seen(events):
    meter = StreamMeter("m")
    meter.feed(start() + BLOCK)
    for one in events:
        meter.feed(one)
        metered = meter.reading().metered
        assert metered is not None
        assert metered.usage.output == meter.output_seen


# The usage object alone.


def test_a_usage_object_is_read_from_bytes_or_fields():
    assert read_usage(b'{"input_tokens": 3, "output_tokens": 4}', model="m") == read_usage({"input_tokens": 3, "output_tokens": 4}, model="m")
    assert read_usage({}, model="m").usage == Usage()
    assert read_usage({"output_tokens": 4}, model="m", empty_refusal=True).segments == ()


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"{"])
def test_what_is_no_usage_object_is_refused(text):
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        read_usage(text, model="m")
