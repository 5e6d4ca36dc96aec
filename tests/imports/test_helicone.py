"""Helicone's requests: bodies are believed before columns, and its own cache called nobody."""

from __future__ import annotations

import json

import pytest

from tokenweir.imports.fields import FLAG_CACHE_UNSAID
from tokenweir.imports.helicone import read
from tokenweir.usage import Usage

ROW = {
    "request_id": "5f0c",
    "request_created_at": "2026-11-20T10:00:00.000Z",
    "response_created_at": "2026-11-20T10:00:03.000Z",
    "response_status": 200,
    "request_model": "claude-haiku-4-5",
    "model": "claude-haiku-4-5-20251001",
    "provider": "ANTHROPIC",
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "prompt_cache_write_tokens": 5,
    "prompt_cache_read_tokens": 7,
    "total_tokens": 42,
    "request_user_id": "ada",
    "request_properties": {"Helicone-Session-Id": "s", "project": "app"},
    "cost": 0.5,
}


def test_counts_are_taken_from_the_columns():
    call = read(ROW)
    assert call.metered.usage == Usage(10, 5, 0, 7, 20)
    assert (call.own_id, call.person, call.session_id, call.project) == ("5f0c", "ada", "s", "app")
    assert (call.metered.model, call.model_requested) == ("claude-haiku-4-5-20251001", "claude-haiku-4-5")


def test_a_prompt_that_includes_the_cache_is_recognised_by_the_total():
    assert read(ROW | {"prompt_tokens": 22}).metered.usage == Usage(10, 5, 0, 7, 20)


@pytest.mark.parametrize("form", [lambda body: body, json.dumps])
def test_the_provider_s_own_answer_is_believed_before_the_columns(form):
    body = {"id": "msg_7", "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3}}
    call = read(ROW | {"response_body": form(body)})
    assert call.metered.usage == Usage(uncached_input=1, cache_read=3, output=2)
    assert (call.message_id, call.stop_reason) == ("msg_7", "end_turn")


def test_a_body_that_is_not_json_leaves_the_columns():
    assert read(ROW | {"response_body": "event: message_start …"}).metered.usage.output == 20


def test_a_row_that_says_nothing_of_the_cache_is_flagged():
    plain = {name: value for name, value in ROW.items() if "cache" not in name} | {"total_tokens": 30}
    assert read(plain).metered.flags == (FLAG_CACHE_UNSAID,)


@pytest.mark.parametrize(
    "change", [{"provider": "OPENAI"}, {"model": "gpt-4o"}, {"response_status": 529}, {"cache_reference_id": "0a1b0000-0000-0000-0000-000000000001"}]
)
def test_what_is_no_billed_call_to_the_claude_api_is_skipped(change):
    assert read(ROW | change) is None


@pytest.mark.parametrize(
    ("change", "reason"), [({"request_id": None}, "request_id"), ({"total_tokens": 1}, "neither"), ({"completion_tokens": "?"}, "count")]
)
def test_what_cannot_be_believed_is_refused_with_its_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        read(ROW | change)
