"""LiteLLM's spend logs: its prompt includes the cache, its price is not ours, and what it answered itself is no call."""

from __future__ import annotations

import json

import pytest

from tokenweir.imports.fields import FLAG_CACHE_UNSAID
from tokenweir.imports.litellm import read
from tokenweir.usage import Usage

ROW = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "spend": 9.99,
    "total_tokens": 1300,
    "prompt_tokens": 1200,
    "completion_tokens": 100,
    "startTime": "2026-11-20 10:00:00.123",
    "endTime": "2026-11-20T10:00:02Z",
    "model": "anthropic/claude-opus-4-5",
    "model_group": "smart",
    "custom_llm_provider": "anthropic",
    "user": "ada",
    "cache_hit": "False",
    "session_id": "s",
    "request_tags": ["x"],
    "team_id": "t1",
    "metadata": {
        "usage_object": {
            "prompt_tokens": 1200,
            "completion_tokens": 100,
            "cache_read_input_tokens": 900,
            "cache_creation_input_tokens": 100,
            "prompt_tokens_details": {"cached_tokens": 900, "cache_creation_token_details": {"ephemeral_1h_input_tokens": 40}},
            "completion_tokens_details": {"reasoning_tokens": 30},
        }
    },
}


def as_csv(row: dict) -> dict:
    return {name: json.dumps(value) if isinstance(value, dict | list) else "" if value is None else str(value) for name, value in row.items()}


@pytest.mark.parametrize("form", [dict, as_csv])
def test_the_cached_part_of_the_prompt_is_taken_out_of_it(form):
    call = read(form(ROW))
    assert call.metered.usage == Usage(200, 60, 40, 900, 100, 30)
    assert call.metered.flags == ()
    assert (call.metered.model, call.model_requested) == ("claude-opus-4-5", "smart")
    assert (call.message_id, call.request_id, call.own_id) == ("", "", "chatcmpl-1")
    assert (call.person, call.tags, call.session_id) == ("ada", ("team:t1", "x"), "s")
    assert call.ended_at_us - call.started_at_us == 1_877_000


def test_older_versions_state_the_split_elsewhere():
    call = read(ROW | {"metadata": {"additional_usage_values": {"cache_read_input_tokens": 1000, "cache_creation_input_tokens": 0}}})
    assert call.metered.usage == Usage(200, 0, 0, 1000, 100)


def test_a_row_that_says_nothing_of_the_cache_is_flagged():
    call = read(ROW | {"metadata": None})
    assert call.metered.usage == Usage(uncached_input=1200, output=100)
    assert call.metered.flags == (FLAG_CACHE_UNSAID,)


def test_the_provider_s_own_usage_object_is_taken_as_it_is():
    usage = {"input_tokens": 7, "output_tokens": 8, "cache_read_input_tokens": 9, "server_tool_use": {"web_search_requests": 2}}
    call = read(ROW | {"metadata": {"usage_object": usage}, "request_id": "msg_9"})
    assert call.metered.usage == Usage(uncached_input=7, cache_read=9, output=8, web_searches=2)
    assert json.loads(call.raw_usage) == usage
    assert call.message_id == "msg_9"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gpt-4o", "custom_llm_provider": "openai"},
        {"custom_llm_provider": "bedrock"},
        {"cache_hit": "True"},
        {"status": "failure", "total_tokens": 0},
    ],
)
def test_what_is_no_call_to_the_claude_api_is_skipped(change):
    assert read(ROW | change) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_tokens": 900, "total_tokens": 1000}, "smaller"),
        ({"prompt_tokens": "many"}, "prompt_tokens is no count"),
        ({"prompt_tokens": None}, "prompt_tokens is missing"),
        ({"total_tokens": 1}, "total_tokens"),
        ({"startTime": ""}, "startTime is missing"),
        ({"request_id": ""}, "request_id is missing"),
        ({"metadata": "{"}, "metadata is not JSON"),
    ],
)
def test_what_cannot_be_believed_is_refused_with_its_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        read(ROW | change)
