"""Requests are read so that no other JSON reader can have understood them differently, and their ceilings hold."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import FIXTURES, needs_fixtures
from tokenweir.errors import InvalidRequest
from tokenweir.usage import Usage
from tokenweir.wire.envelope import FIELDS_READ, IMAGE_TOKENS_MAX, SERVER_LOOP_CONTEXTS, Envelope, ceiling_usage, read_envelope
from tokenweir.wire.messages import read_usage

PLAIN = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


def body_of(**fields: Any) -> bytes:
    return json.dumps({**PLAIN, **fields}, separators=(",", ":")).encode()


def refusal_of(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        read_envelope(body)
    return refused.value.message


def test_the_facts_of_a_request_are_read():
    body = body_of(stream=True, speed="fast", inference_geo="us", service_tier="auto")
    envelope = read_envelope(body)
    assert envelope == Envelope(
        model="claude-sonnet-5-5", max_tokens=100, stream=True, speed="fast", inference_geo="us", service_tier="auto", body_bytes=len(body),
        text_bytes=len(body),
    )  # fmt: skip


def test_unknown_fields_pass():
    assert read_envelope(body_of(safeguards=[1], tags={"a": "b"}, future={"x": [None, 1.5e300]})).model == "claude-sonnet-5-5"


def test_null_words_say_nothing():
    assert read_envelope(body_of(speed=None, inference_geo=None)).speed == ""


def test_a_route_without_model_is_read_when_none_is_needed():
    assert read_envelope(b"{}", needs_model=False).model == ""
    assert "missing" in refusal_of(b"{}")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"[]", b'"model"', b"null", b"1", b"{", b'{"model":"m"', b'{"model":"m"} x', b'{"model":"m"}{}', b'\xef\xbb\xbf{"model":"m"}'),
        *(
            b'{"model":"m",}',
            b"{'model':'m'}",
            b'{"model":"m"}\x00',
            '{"model":"m"}'.encode("utf-16"),
            b'{"model":"m","x":NaN}',
            b'{"model":"m","x":01}',
        ),
        *(b'{"model":"m","x":"\x01"}', b'{"model":"m","x":"\\ud800"}', b'{"model":"m","\xff":1}', b'{"model":"m","x":"\\u00"}'),
    ],
)
def test_what_is_not_one_json_object_is_refused(body):
    assert refusal_of(body).startswith("the body ")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"b":'])
def test_deep_nesting_is_refused_and_does_not_crash(opening):
    assert "nested too deeply" in refusal_of(b'{"model":"m","x":' + opening * 100_000)
    assert "nested too deeply" in refusal_of(b'{"model":"m","tools":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_reasonable_nesting_passes():
    assert read_envelope(b'{"model":"m","x":' + b"[" * 200 + b"]" * 200 + b"}").model == "m"


@pytest.mark.parametrize("value", ["1e3", "100.0", "true", '"5"', "-1", "-0", "null", "[1]", "9007199254740993", "1" * 100_000, "1e999999"])
def test_max_tokens_must_be_plainly_a_whole_number(value):
    message = refusal_of(b'{"model":"m","max_tokens":%b}' % value.encode())
    assert message.startswith("max_tokens is ")
    assert len(message) < 250


@pytest.mark.parametrize("value", [0, 1, 128_000, 2**53])
def test_max_tokens_within_bounds_is_read(value):
    assert read_envelope(body_of(max_tokens=value)).max_tokens == value


@pytest.mark.parametrize("value", [None, 1, 0, "true", [], {}])
def test_stream_must_be_a_boolean(value):
    assert refusal_of(body_of(stream=value)).startswith("stream is ")


@pytest.mark.parametrize("value", ["", "a\nb", "a\x00b", "m" * 257, 7, None, ["m"], "a\x1b[31m"])
def test_a_model_must_be_a_short_printable_string(value):
    message = refusal_of(body_of(model=value))
    assert message.startswith("model is ")
    assert message.isprintable()


@pytest.mark.parametrize("name", ["speed", "inference_geo", "service_tier"])
@pytest.mark.parametrize("value", [1, ["fast"], "x" * 65, "a\nb"])
def test_words_that_set_the_price_must_be_short_strings(name, value):
    assert refusal_of(body_of(**{name: value})).startswith(f"{name} is ")


@pytest.mark.parametrize(
    "name", ["model", "max_tokens", "stream", "speed", "inference_geo", "service_tier", "tools", "messages", "system", "fallbacks"]
)
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_repeated_field_is_refused_wherever_it_stands(name, spaced, first):
    members = {**PLAIN, "stream": True, "speed": "fast", "inference_geo": "us", "service_tier": "auto", "tools": [], "system": "s", "fallbacks": []}
    written = [(key, json.dumps(value)) for key, value in members.items()]
    again = (name, json.dumps(members[name]))
    written = [again, *written] if first else [*written, again]
    comma, colon = (" ,\n ", " : ") if spaced else (",", ":")
    text = "{" + comma.join(f'"{key}"{colon}{value}' for key, value in written) + "}"
    assert "occurs twice" in refusal_of(text.encode())


def test_a_repetition_is_found_when_its_values_differ_in_length():
    assert "occurs twice" in refusal_of(b'{"max_tokens":10,"model":"m","max_tokens":1}')
    assert "occurs twice" in refusal_of(b'{"max_tokens":1,"model":"m","max_tokens":10}')
    assert "occurs twice" in refusal_of(b'{ "model":"a" , "model":"b" }')


def test_a_repetition_hidden_in_the_shape_of_a_value_is_found():
    """The first value holds text that looks like the rest of the object, to lead a reader of offsets astray."""
    inner = 'x","max_tokens":5,"z":"'
    body = json.dumps({"model": inner})[:-1].encode() + b',"max_tokens":5,"model":"x"}'
    assert "occurs twice" in refusal_of(body)
    assert "occurs twice" in refusal_of(b'{"model":"a","x":"b"  ,"model" :"a"}')


@pytest.mark.parametrize("spelled", ['"mod\\u0065l"', '"\\u006dodel"', '"\\u006D\\u006F\\u0064\\u0065\\u006C"'])
def test_a_field_that_matters_must_be_spelled_plainly(spelled):
    body = b'{"max_tokens":5,%b:"claude-haiku-5-5"}' % spelled.encode()
    assert refusal_of(body) == "the field 'model' is spelled with escapes; write it plainly"
    for twice in (b'{"model":"m",%b:"claude-opus-5-5"}', b'{%b:"claude-opus-5-5","model":"m"}'):
        message = refusal_of(twice % spelled.encode())
        assert "twice" in message or "escapes" in message


def test_an_unknown_field_may_be_spelled_with_escapes():
    assert read_envelope(b'{"caf\\u00e9":1,"model":"m"}').model == "m"
    assert read_envelope('{"café":1,"model":"m"}'.encode()).model == "m"


def test_nested_fields_of_the_same_name_are_no_repetition():
    tools = [{"name": "Agent", "input_schema": {"properties": {"model": {"type": "string"}, "max_tokens": {}, "stream": {}}}}]
    body = body_of(tools=tools, messages=[{"role": "user", "content": '{"model":"x","model":"y"}'}])
    assert read_envelope(body).model == "claude-sonnet-5-5"
    assert read_envelope(json.dumps(json.loads(body), indent=3).encode()).model == "claude-sonnet-5-5"


@pytest.mark.parametrize(("count", "read"), [(255, True), (256, False), (1_000_000, False)])
def test_more_fields_than_any_request_has_are_refused(count, read):
    body = b'{"model":"m",' + b",".join(b'"k%d": 1' % number for number in range(count)) + b"}"
    if read:
        assert read_envelope(body).model == "m"
    else:
        assert f"the body has {count + 1} top-level fields" in refusal_of(body)


_KEYS = st.sampled_from(["model", "max_tokens", "stream", "x", "y", "messages", "é", 'q"q', "b\\"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 99) | st.sampled_from(["m", 'a","model":"b', "\\", "é", "}", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)
_SPACES = st.sampled_from(["", "", " ", "\n", "\t ", " \r\n"])


@given(st.lists(st.tuples(_KEYS, _VALUES, st.booleans()), max_size=6), st.data())
def test_what_is_accepted_has_one_reading(members, data):
    """Any writing of an object is accepted only if a reader that keeps all pairs sees each key once and the same model."""

    def space() -> str:
        return data.draw(_SPACES)

    parts = []
    for key, value, ascii_only in members:
        parts.append(f"{space()}{json.dumps(key, ensure_ascii=ascii_only)}{space()}:{space()}{json.dumps(value, ensure_ascii=ascii_only)}{space()}")
    text = space() + "{" + (",".join(parts) or space()) + "}" + space()
    pairs: list[tuple[str, Any]] = []
    json.loads(text, object_pairs_hook=lambda found: (pairs.clear(), pairs.extend(found)))
    keys = [key for key, _, _ in members]
    valid = (
        len(set(keys)) == len(keys)
        and all(type(value) is int for key, value, _ in members if key == "max_tokens")
        and all(type(value) is bool for key, value, _ in members if key == "stream")
        and all(isinstance(value, str) and value for key, value, _ in members if key == "model")
    )
    try:
        envelope = read_envelope(text.encode(), needs_model=False)
    except InvalidRequest:
        assert not valid
    else:
        assert valid
        assert [key for key, _ in pairs] == keys
        assert envelope.model == dict(pairs).get("model", "")
        assert envelope.max_tokens == dict(pairs).get("max_tokens")


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_sentence(noise):
    for body in (noise, b'{"model":"m",' + noise + b"}", b'{"model":"m","x":' + noise + b"}"):
        message = ""
        try:
            read_envelope(body)
        except InvalidRequest as refused:
            message = refused.message
        assert message.isprintable()


def test_the_fields_that_may_not_be_hidden_are_those_that_decide():
    assert {"model", "max_tokens", "stream", "speed", "inference_geo", "service_tier", "tools", "messages", "system"} <= FIELDS_READ


# What lies deeper.


@pytest.mark.parametrize(
    ("control", "ttl"),
    [
        ({"type": "ephemeral"}, "5m"),
        ({"type": "ephemeral", "ttl": "5m"}, "5m"),
        ({"ttl": "5m", "type": "ephemeral"}, "5m"),
        ({"type": "ephemeral", "ttl": None}, "5m"),
        (None, "5m"),
        ({"type": "ephemeral", "ttl": "1h"}, "1h"),
        ({"type": "ephemeral", "ttl": "24h"}, "1h"),
        ({"type": "ephemeral", "scope": "global"}, "1h"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_dearest_time_to_live_is_found(control, ttl, indent):
    plain = {"type": "ephemeral"}
    for fields in (
        {"cache_control": control},
        {"system": [{"type": "text", "text": "s", "cache_control": control}]},
        {"tools": [{"name": "t", "input_schema": {}, "cache_control": plain}, {"name": "u", "input_schema": {}, "cache_control": control}]},
    ):
        assert read_envelope(json.dumps({**PLAIN, **fields}, indent=indent).encode()).cache_ttl == ttl
    assert read_envelope(body_of()).cache_ttl == ""


def test_words_hidden_by_escapes_are_found():
    hidden = body_of(system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}])
    assert read_envelope(hidden.replace(b"cache_control", b"cache\\u005Fcontrol")).cache_ttl == "1h"
    assert read_envelope(hidden.replace(b'"1h"', b'"\\u0031h"')).cache_ttl == "1h"
    image = body_of(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]}])
    assert read_envelope(image.replace(b'"url"', b'"\\u0075rl"')).remote_sources


def test_text_that_speaks_of_caching_is_not_caching():
    assert (
        read_envelope(body_of(messages=[{"role": "user", "content": 'send {"cache_control": {"type": "url"}}, {"type": "image"}'}])).cache_ttl == ""
    )


@pytest.mark.parametrize(
    ("block", "remote", "images"),
    [
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}, False, 1),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, True, 1),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, True, 1),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "aaaa"}}, False, 0),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}}, True, 0),
        ({"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}}, True, 0),
        ({"type": "container_upload", "file_id": "file_1"}, True, 0),
        ({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {"type": "base64", "data": "a"}}]}, False, 1),
        ({"type": "tool_use", "id": "t", "name": "WebFetch", "input": {"url": "https://example.com"}}, False, 0),
    ],
)
def test_sources_beyond_the_body_are_seen(block, remote, images):
    envelope = read_envelope(body_of(messages=[{"role": "user", "content": [block]}]))
    assert (envelope.remote_sources, envelope.images) == (remote, images)


@pytest.mark.parametrize("fields", [{"container": "cntr_1"}, {"container": {"skills": [{"skill_id": "pdf"}]}}, {"thread": {"id": "t"}}])
def test_containers_and_threads_are_beyond_the_body(fields):
    assert read_envelope(body_of(**fields)).remote_sources


@pytest.mark.parametrize(
    ("fields", "server"),
    [
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, False),
        ({"tools": [{"type": "custom", "name": "f", "input_schema": {}}]}, False),
        ({"tools": None}, False),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}, {"type": "memory_20250818", "name": "memory"}]}, False),
        ({"tools": [{"type": "web_search_20260209", "name": "web_search"}]}, True),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, True),
        ({"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5-5"}]}, True),
        ({"tools": [{"type": "something_new_20270101", "name": "x"}]}, True),
        ({"tools": [{"type": 5}]}, True),
        ({"tools": "all"}, True),
        ({"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "x"}]}, True),
        ({"mcp_servers": []}, False),
        ({"messages": [{"role": "system", "content": [{"type": "tool_addition", "tools": [{"type": "web_fetch_20260209"}]}]}]}, True),
        ({"messages": [{"role": "assistant", "content": [{"type": "web_search_tool_result", "tool_use_id": "s", "content": []}]}]}, False),
    ],
)
def test_tools_that_run_at_the_provider_are_seen(fields, server):
    assert read_envelope(body_of(**fields)).server_tools is server


def test_searches_are_bounded_by_their_uses():
    tool = {"type": "web_search_20260209", "name": "web_search"}
    assert read_envelope(body_of(tools=[{**tool, "max_uses": 3}])).web_searches_max == 3
    assert read_envelope(body_of(tools=[tool])).web_searches_max == 10
    assert read_envelope(body_of(tools=[{**tool, "max_uses": -5}])).web_searches_max == 0


def test_other_models_and_further_passes_are_seen():
    envelope = read_envelope(body_of(fallbacks=[{"model": "claude-opus-5-5"}, {"model": "claude-sonnet-5"}]))
    assert (envelope.passes, envelope.other_models) == (3, ("claude-opus-5-5", "claude-sonnet-5"))
    assert read_envelope(body_of(fallbacks="default")).passes == 2
    assert read_envelope(body_of(context_management={"edits": [{"type": "compact_20260112"}]})).passes == 2
    assert read_envelope(body_of(context_management={"edits": [{"type": "clear_thinking_20251015"}]})).passes == 1
    advised = read_envelope(body_of(tools=[{"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5-5"}]))
    assert advised.other_models == ("claude-opus-5-5",)


# The ceiling.


def test_a_plain_request_is_bounded_by_its_bytes_and_max_tokens():
    ceiling = ceiling_usage(Envelope(model="m", max_tokens=100, body_bytes=1_000), context_tokens=200_000, output_tokens_max=64_000)
    assert ceiling == Usage(uncached_input=1_000 + 2_048, output=100)


def test_the_ceiling_uses_the_class_the_breakpoints_ask_for():
    for ttl, name in (("5m", "cache_write_5m"), ("1h", "cache_write_1h")):
        ceiling = ceiling_usage(Envelope(model="m", max_tokens=1, body_bytes=10, cache_ttl=ttl), context_tokens=200_000, output_tokens_max=64_000)
        assert getattr(ceiling, name) == ceiling.prompt > 0


def test_the_ceiling_never_exceeds_the_context_without_loops():
    huge = Envelope(model="m", body_bytes=30_000_000, images=100)
    assert ceiling_usage(huge, context_tokens=200_000, output_tokens_max=64_000) == Usage(uncached_input=200_000, output=64_000)


def test_images_sources_and_loops_raise_the_ceiling():
    plain = ceiling_usage(Envelope(model="m", max_tokens=1, body_bytes=10), context_tokens=1_000_000, output_tokens_max=9)
    image = ceiling_usage(Envelope(model="m", max_tokens=1, body_bytes=10, images=2), context_tokens=1_000_000, output_tokens_max=9)
    assert image.prompt - plain.prompt == 2 * IMAGE_TOKENS_MAX
    remote = ceiling_usage(Envelope(model="m", body_bytes=10, remote_sources=True), context_tokens=1_000_000, output_tokens_max=9)
    assert remote.prompt == 1_000_000
    server = ceiling_usage(Envelope(model="m", body_bytes=10, server_tools=True, web_searches_max=5), context_tokens=1_000_000, output_tokens_max=9)
    assert (server.prompt, server.web_searches) == (SERVER_LOOP_CONTEXTS * 1_000_000, 5)


@needs_fixtures
def test_no_recorded_answer_exceeds_the_ceiling_of_its_request():
    assert FIXTURES is not None
    checked = 0
    for line in (FIXTURES / "anthropic" / "corpus.jsonl").read_text().split("\n"):
        row = json.loads(line or "{}")
        if not isinstance(row.get("request"), dict) or not row["path"].startswith("/v1/messages") or not row["usage"]:
            continue
        envelope = read_envelope(json.dumps(row["request"], separators=(",", ":"), ensure_ascii=False).encode())
        ceiling = ceiling_usage(envelope, context_tokens=200_000, output_tokens_max=128_000)
        top = read_usage(row["usage"], model="m").usage
        assert top.prompt <= ceiling.prompt, row["source"]
        assert top.output <= ceiling.output, row["source"]
        assert top.web_searches <= ceiling.web_searches, row["source"]
        checked += 1
    assert checked > 100


@needs_fixtures
def test_claude_code_requests_are_read():
    assert FIXTURES is not None
    seen = 0
    for path in sorted((FIXTURES / "claude-code").glob("*messages.json")):
        body = json.dumps(json.loads(path.read_text())["body"], separators=(",", ":")).encode()
        envelope = read_envelope(body)
        assert envelope.stream
        assert envelope.cache_ttl == "5m"
        assert not envelope.server_tools
        assert not envelope.remote_sources
        assert envelope.passes == 1
        seen += 1
    assert seen >= 1


# Text, and what is no text.

PIXELS = base64.b64encode(bytes(range(256)) * 12)


def with_block(block: bytes, separators: tuple[str, str] = (",", ":")) -> bytes:
    messages = json.dumps([{"role": "user", "content": ["BLOCK", {"type": "text", "text": "hi"}]}], separators=separators).encode()
    return b'{"model":"m","messages":%b}' % messages.replace(b'"BLOCK"', block)


@pytest.mark.parametrize(
    "block",
    [
        b'{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%b"}}',
        b'{"type":"image","source":{"data":"%b","type":"base64","media_type":"image/png"}}',
        b'{"type": "image", "source": {\n "type": "base64",\n "media_type": "image/png",\n "data" : "%b"\n}}',
        b'{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"%b"},"title":"base64"}',
        b'{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{"type":"base64","media_type":"image/webp","data":"%b"}}]}',
    ],
)
def test_the_contents_of_an_image_or_document_are_no_text(block):
    body = with_block(block % PIXELS)
    envelope = read_envelope(body)
    assert (envelope.body_bytes, envelope.text_bytes) == (len(body), len(body) - len(PIXELS))


def test_every_image_of_many_is_left_out():
    block = b'{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%b"}}' % PIXELS
    body = with_block(b",".join([block] * 5))
    assert (read_envelope(body).text_bytes, read_envelope(body).images) == (len(body) - 5 * len(PIXELS), 5)


@pytest.mark.parametrize(
    "block",
    [
        b'{"type":"document","source":{"type":"text","media_type":"text/plain","data":"%b"}}',
        b'{"type":"tool_use","id":"t","name":"n","input":{"data":"%b"}}',
        b'{"type":"redacted_thinking","data":"%b"}',
        b'{"type":"text","text":"\\"type\\":\\"base64\\",\\"data\\":\\"%b\\""}',
    ],
)
def test_what_only_looks_like_an_image_is_text_also_beside_one(block):
    image = b'{"type":"image","source":{"type":"base64","media_type":"image/png","data":"aaaa"}}'
    for body in (with_block(block % PIXELS), with_block(image + b"," + block % PIXELS), with_block(block % PIXELS + b"," + image)):
        assert read_envelope(body).text_bytes == len(body) - 4 * body.count(b"aaaa")


def test_a_body_made_to_be_slow_is_counted_once_through():
    repeated = b'"data":"",' * 200_000
    body = with_block(b'{"type":"image","source":{"type":"base64","input":{%b"data":"x"}}}' % repeated)
    assert read_envelope(body).text_bytes in range(len(body) - 1, len(body) + 1)
