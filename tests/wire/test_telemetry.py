"""Claude Code's events and metrics: what they say of a call is taken as it is said, and what cannot be right is refused, never guessed."""

from __future__ import annotations

import json

import pytest

from exporting import AT_NANOS, SESSION, event, logs, metrics, point
from fixtures import FIXTURES, needs_fixtures
from tokenweir.usage import Usage
from tokenweir.wire.telemetry import COST_METRIC, FLAG_SPLIT_ASSUMED, TOKEN_METRIC, read_logs, read_metrics


def told(export, read=read_logs):
    return read(json.dumps(export).encode(), protobuf=False)


@needs_fixtures
def test_the_captured_logs_tell_of_one_call():
    export = json.loads((FIXTURES / "claude-code" / "capture_2_02_v1_logs.json").read_text())["body"]
    reading = told(export)
    (request,) = reading.requests
    assert (reading.skipped, reading.refused) == (6, 0)
    assert request.usage == Usage(uncached_input=11, cache_write_5m=2000, output=7)
    assert (request.request_id, request.model, request.cost_nanos) == ("req_01Research", "claude-sonnet-5-5", 5_092_000)
    assert request.session_id == SESSION
    assert {"team:blue", "cost_center:42", "query_source:sdk"} <= set(request.tags)
    assert not any(tag.startswith(("host", "os.", "service")) for tag in request.tags)
    assert request.ended_at_us - request.started_at_us == 24_000


@needs_fixtures
def test_the_captured_metrics_agree_with_the_captured_logs():
    export = json.loads((FIXTURES / "claude-code" / "capture_2_03_v1_metrics.json").read_text())["body"]
    reading = told(export, read_metrics)
    amounts = {(one.metric, one.token_type): one.amount for one in reading.points}
    assert amounts == {
        (COST_METRIC, ""): 5_092_000,
        (TOKEN_METRIC, "input"): 11,
        (TOKEN_METRIC, "output"): 7,
        (TOKEN_METRIC, "cacheRead"): 0,
        (TOKEN_METRIC, "cacheCreation"): 2000,
    }
    assert reading.skipped == 2


def test_what_people_wrote_is_never_taken_out_of_a_body():
    reading = told(logs(event(prompt="the secret plan"), event(body="claude_code.user_prompt", prompt="the secret plan")))
    assert "secret" not in repr(reading)


def test_writes_without_their_split_are_taken_as_five_minutes_and_flagged():
    reading = told(logs(event(without=("cache_creation_5m_tokens", "cache_creation_1h_tokens"))))
    assert reading.requests[0].usage.cache_write_5m == 2000
    assert reading.requests[0].flags == (FLAG_SPLIT_ASSUMED,)
    partly = told(logs(event(without=("cache_creation_5m_tokens",), cache_creation_1h_tokens=500))).requests[0]
    assert (partly.usage.cache_write_5m, partly.usage.cache_write_1h) == (1500, 500)


def test_counts_may_come_as_text_or_as_whole_floats():
    request = told(logs(event(input_tokens="12", output_tokens=8.0))).requests[0]
    assert (request.usage.uncached_input, request.usage.output) == (12, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": -1},
        {"output_tokens": 1.5},
        {"output_tokens": "many"},
        {"cache_read_tokens": True},
        {"input_tokens": 10**10 + 1},
        {"input_tokens": "9" * 30},
        {"model": ""},
        {"cost_usd_micros": -5},
        {"without": ("output_tokens",)},
        {"without": ("input_tokens",)},
        {"at_nanos": 0, "without": ("event.timestamp",)},
        {"at_nanos": 2**63 - 1},
        {"cost_usd": float("inf"), "without": ("cost_usd_micros",)},
    ],
)
def test_what_cannot_be_right_is_refused_and_the_rest_is_taken(changes):
    export = json.dumps(logs(event(**changes), event(request_id="req_good"))).replace("Infinity", '"Infinity"')
    reading = read_logs(export.encode(), protobuf=False)
    assert (reading.refused, [one.request_id for one in reading.requests]) == (1, ["req_good"])
    assert reading.problem


def test_the_same_event_has_the_same_id_and_another_one_has_not():
    first, again, other = (told(logs(event(without=("request_id",), **{"event.sequence": n}))).requests[0].event_id for n in (1, 1, 2))
    assert first == again != other


def test_an_event_is_known_by_its_body_its_name_or_its_attribute():
    by_name = {"eventName": "claude_code.api_request", **{k: v for k, v in event().items() if k != "body"}}
    by_attribute = {k: v for k, v in event().items() if k != "body"}
    assert len(told(logs(event(), by_name, by_attribute)).requests) == 3
    assert told(logs(event(body="claude_code.api_error"))).skipped == 1


def test_names_from_outside_are_cut_and_made_harmless():
    request = told(logs(event(**{"session.id": "\x1b[31m" + "s" * 500}), team="x" * 500)).requests[0]
    assert request.session_id.isprintable()
    assert len(request.session_id) == 200
    assert all(len(tag) <= 200 for tag in request.tags)
    assert len(told(logs(event(), **{f"tag{n}": "x" for n in range(50)})).requests[0].tags) == 16


def test_normal_speed_is_no_speed():
    assert told(logs(event(speed="normal"))).requests[0].speed == ""
    assert told(logs(event(speed="fast"))).requests[0].speed == "fast"


@pytest.mark.parametrize("bad", [point(1, type="thinking"), point(-1, type="input"), point(1.5, type="input"), point(1, type="input", at_nanos=0)])
def test_a_point_that_cannot_be_right_is_refused(bad):
    reading = told(metrics(TOKEN_METRIC, bad, point(3, type="input")), read_metrics)
    assert (reading.refused, len(reading.points)) == (1, 1)


def test_a_cost_is_exact_to_the_nano_dollar():
    reading = told(metrics(COST_METRIC, point(0.1), point(5)), read_metrics)
    assert [one.amount for one in reading.points] == [100_000_000, 5_000_000_000]


def test_other_metrics_are_stepped_over():
    assert told(metrics("claude_code.active_time.total", point(1), point(2)), read_metrics).skipped == 2
    assert AT_NANOS % 1000 == 0
