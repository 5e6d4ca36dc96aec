"""One line of a transcript is one row or nothing; of several rows of one answer the fullest counts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.usage import Segment, Usage
from tokenweir.wire.transcripts import FLAG_MISSING_TIME, MARK, fuller, read_line

AT_US = 1_795_348_536_338_000
USAGE = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 50,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    "cache_read_input_tokens": 400,
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 3},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    "service_tier": "standard",
    "speed": "standard",
}


def line(*, message=(), without=(), **fields):
    entry = {
        "parentUuid": None,
        "isSidechain": False,
        "cwd": "/home/ada/weir",
        "sessionId": "s-1",
        "version": "2.1.330",
        "gitBranch": "main",
        "type": "assistant",
        "message": {
            "model": "claude-sonnet-5-5",
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "hi"}],
            "stop_reason": "end_turn",
            "usage": USAGE,
            **dict(message),
        },
        "requestId": "req_1",
        "uuid": "u-1",
        "timestamp": "2026-11-22T11:55:36.338Z",
        **fields,
    }
    return json.dumps({name: value for name, value in entry.items() if name not in without}).encode()


def read(*, message=(), without=(), **fields):
    return read_line(line(message=message, without=without, **fields), otherwise_us=5)


def test_a_line_of_an_assistant_becomes_a_row_with_every_class_of_tokens():
    row = read()
    assert row.metered.usage == Usage(11, 20, 30, 400, 7, 3, 2, 0, 0)
    assert row.metered.segments == (Segment("message", "claude-sonnet-5-5", row.metered.usage),)
    assert (row.key, row.at_us, row.session_id, row.cwd, row.git_branch, row.client_version) == (
        "msg_1:req_1",
        AT_US,
        "s-1",
        "/home/ada/weir",
        "main",
        "2.1.330",
    )
    assert not row.estimated
    assert MARK in line()


@pytest.mark.parametrize(
    "other",
    [
        {"type": "user"},
        {"isApiErrorMessage": True},
        {"message": {"model": "<synthetic>"}},
        {"message": {"usage": None}},
        {"message": {"usage": {}}},
        {"message": {"usage": "much"}},
        {"message": {"usage": []}},
        {"without": ("message",)},
        {"without": ("type",)},
    ],
)
def test_what_never_reached_a_model_is_no_row(other):
    assert read(**other) is None


@pytest.mark.parametrize("torn", [b"", b"{", line()[:-1], line()[: len(line()) // 2], b"[1]", b'"usage"', line()[:50] + line(), b"\xff\xfe"])
def test_a_torn_line_is_a_failure_and_not_a_row(torn):
    with pytest.raises(ValueError, match="JSON object"):
        read_line(torn, otherwise_us=0)


def test_the_key_is_the_best_name_that_the_line_has_for_the_answer():
    assert read().key == "msg_1:req_1"
    assert read(without=("requestId",)).key == "msg_1"
    assert read(message={"id": None}).key == "u-1"
    nameless = line(message={"id": None}, without=("uuid", "requestId"))
    assert read_line(nameless, otherwise_us=0).key == read_line(nameless, otherwise_us=9).key != ""


def test_writes_without_a_split_were_for_five_minutes():
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 9}
    assert read(message={"usage": usage}).metered.usage == Usage(uncached_input=1, cache_write_5m=9, output=2)


def test_iterations_are_what_is_billed():
    usage = {
        **USAGE,
        "iterations": [
            {"type": "compaction", "input_tokens": 900, "output_tokens": 90},
            {"type": "message", **{k: USAGE[k] for k in list(USAGE)[:5]}},
        ],
    }
    segments = read(message={"usage": usage}).metered.segments
    assert [segment.kind for segment in segments] == ["compaction", "message"]


def test_a_refusal_without_content_is_billed_nothing():
    assert read(message={"stop_reason": "refusal", "content": []}).metered.segments == ()
    assert read(message={"stop_reason": "refusal"}).metered.segments != ()


def test_fields_of_another_type_are_taken_as_not_said():
    row = read(requestId=17, isSidechain="no", version=None, cwd=["a"], agentId={"a": 1})
    assert (row.key, row.sidechain, row.client_version, row.cwd, row.agent_id) == ("msg_1", False, "", "", "")
    assert row.metered.usage == read().metered.usage
    assert read_line(b'{"type": "assistant", "message": "text"}', otherwise_us=0) is None


def test_a_byte_order_mark_and_a_broken_character_do_not_cost_a_row():
    assert read_line(b"\xef\xbb\xbf" + line(), otherwise_us=0).metered == read().metered
    assert read_line(line(cwd="@").replace(b"@", b"\xff"), otherwise_us=0).metered == read().metered
    assert read_line(line() + b"\r", otherwise_us=0) == read()


def test_a_time_that_is_not_stated_is_the_callers_and_is_flagged():
    for row in (read(without=("timestamp",)), read(timestamp="yesterday"), read(timestamp=12)):
        assert (row.at_us, row.estimated, row.metered.flags) == (5, True, (FLAG_MISSING_TIME,))


@pytest.mark.parametrize(
    "doubt",
    [
        {"message": {"stop_reason": None}},
        {"isSidechain": True},
        {"message": {"usage": {**USAGE, "output_tokens": -4}}},
        {"message": {"usage": {"output_tokens": 4}}},
        {"message": {"usage": {"input_tokens": 4}}},
    ],
)
def test_a_count_that_may_not_be_final_is_estimated(doubt):
    assert read(**doubt).estimated


def test_an_absurd_count_is_left_out_and_flagged_and_the_others_stand():
    row = read(message={"usage": {**USAGE, "output_tokens": 10**30}})
    assert row.metered.usage.output == 0
    assert row.metered.usage.uncached_input == 11
    assert "bad_usage_field:output_tokens" in row.metered.flags


def test_the_usage_object_is_kept_for_whoever_asks():
    assert read().raw_usage == b""
    assert json.loads(read_line(line(), otherwise_us=0, keep_raw=True).raw_usage) == USAGE


def test_the_main_transcript_stands_before_a_sub_agents_and_then_more_tokens_and_then_a_stated_end():
    small = {**USAGE, "output_tokens": 1, "output_tokens_details": None}
    slow = {name: value for name, value in USAGE.items() if name != "speed"}
    ranked = [
        read(isSidechain=True, message={"usage": small}),
        read(isSidechain=True),
        read(message={"usage": small}),
        read(message={"usage": slow, "stop_reason": None}),
        read(message={"stop_reason": None}),
        read(message={"usage": slow}),
        read(timestamp="2026-11-22T11:55:37Z"),
        read(),
    ]
    for index, worse in enumerate(ranked):
        for better in ranked[index + 1 :]:
            assert fuller(worse, better) is better
            assert fuller(better, worse) is better


@given(st.permutations(range(6)), st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from("ab")), min_size=6, max_size=6))
def test_which_row_counts_does_not_depend_on_the_order_they_are_met_in(order, kinds):
    rows = [read(isSidechain=side, sessionId=session, message={"usage": {**USAGE, "output_tokens": 3 + out}}) for out, side, session in kinds]
    first = rows[0]
    for row in rows:
        first = fuller(first, row)
    second = rows[order[0]]
    for index in order:
        second = fuller(rows[index], second)
    assert first == second


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5), st.data()
)
def test_no_value_of_any_field_breaks_the_reading(value, data):
    fields = data.draw(st.sets(st.sampled_from(["uuid", "timestamp", "sessionId", "isSidechain", "requestId", "cwd", "type", "isApiErrorMessage"])))
    parts = data.draw(st.sets(st.sampled_from(["id", "model", "stop_reason", "content", "usage"])))
    row = read(message=dict.fromkeys(parts, value), **dict.fromkeys(fields, value))
    assert row is None or row.metered.usage.total >= 0
