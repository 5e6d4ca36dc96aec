"""Langfuse's observations: only known usage keys are read, and an unknown one that counts refuses the row."""

from __future__ import annotations

import json

import pytest

from tokenweir.imports.fields import FLAG_CACHE_UNSAID
from tokenweir.imports.langfuse import read
from tokenweir.usage import Usage

ROW = {
    "id": "obs-1",
    "type": "GENERATION",
    "start_time": "2026-11-20 10:00:00.000000",
    "end_time": "2026-11-20 10:00:01.000000",
    "provided_model_name": "claude-sonnet-4-5",
    "usage_details": {"input": 10, "output": 20, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 40, "total": 100},
    "user_id": "ada",
    "session_id": "s",
    "tags": ["a"],
}


def test_usage_that_adds_up_to_its_total_is_taken_class_by_class():
    call = read(ROW)
    assert call.metered.usage == Usage(10, 40, 0, 30, 20)
    assert (call.own_id, call.person, call.session_id, call.tags) == ("obs-1", "ada", "s", ("a",))


def test_an_input_that_includes_the_cache_is_recognised_by_the_total():
    call = read(ROW | {"usage_details": {"input": 80, "output": 20, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 40, "total": 100}})
    assert call.metered.usage == Usage(10, 40, 0, 30, 20)


def test_the_names_and_text_of_the_export_from_pages_are_read_as_well():
    row = {
        "id": "obs-1",
        "type": "GENERATION",
        "startTime": "2026-11-20T10:00:00Z",
        "model": "claude-sonnet-4-5",
        "usageDetails": json.dumps(ROW["usage_details"]),
        "userId": "ada",
    }
    assert read(row).metered.usage == Usage(10, 40, 0, 30, 20)
    flat = {name: value for name, value in row.items() if name != "usageDetails"} | {
        "promptTokens": "10",
        "completionTokens": "20",
        "totalTokens": "30",
    }
    call = read(flat)
    assert call.metered.usage == Usage(uncached_input=10, output=20)
    assert call.metered.flags == (FLAG_CACHE_UNSAID,)


def test_cache_writes_of_both_lifetimes_are_told_apart():
    usage = {"input": 1, "output": 2, "cache_creation_input_tokens": 10, "ephemeral_1h_input_tokens": 4}
    assert read(ROW | {"usage_details": usage}).metered.usage == Usage(1, 6, 4, 0, 2)


@pytest.mark.parametrize("change", [{"type": "SPAN"}, {"provided_model_name": "gpt-4o"}])
def test_what_is_no_call_to_the_claude_api_is_skipped(change):
    assert read(ROW | change) is None


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        ({"input": 1, "output": 2, "input_audio_tokens": 5}, "input_audio_tokens is not known"),
        ({"input": 1}, "states no input or no output"),
        ({"input": 1, "output": 2, "cache_read_input_tokens": 5, "total": 50}, "neither"),
        ({"input": 1, "output": 2, "total": 50}, "total of 50"),
        ({"input": 1, "output": 2, "cache_creation_input_tokens": 1, "ephemeral_1h_input_tokens": 4}, "more cache writes"),
    ],
)
def test_what_cannot_be_believed_is_refused_with_its_reason(usage, reason):
    with pytest.raises(ValueError, match=reason):
        read(ROW | {"usage_details": usage})
