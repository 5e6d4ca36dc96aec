"""Both forms of an answer agree, and the product's own reader finds what the journal says."""

from __future__ import annotations

import pytest

from simulation import ask, post_to
from tokenweir.pricing.rating import cost_nanos
from tokenweir.simulator.truth import _COLUMNS
from tokenweir.usage import Certainty
from tokenweir.wire.messages import StreamMeter, read_message

ANSWERS = [
    "output=30",
    "output=300;thinking=120",
    "searches=2;output=60",
    "searches=1;output=5",
    "tool=tide;output=40",
    "compaction=80;output=25",
    "advisor=claude-opus-5-5;output=33",
    "advisor=claude-opus-5-5;output=33;thinking=9",
    "fallback=claude-opus-5;output=21",
    "refusal=empty",
    "refusal=thinking;output=12",
    "refusal=midstream;output=50",
    "stop=pause_turn",
    "two_deltas=true",
    "future=true",
    "tier=priority;geo=us",
    "output=0",
]
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}, "messages": [{"role": "user", "content": "tide " * 3_000}]}


@pytest.mark.parametrize("more", [{}, CACHED], ids=["plain", "cached"])
@pytest.mark.parametrize("text", ANSWERS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_the_product_s_reader_meters_and_prices_what_the_journal_bills(simulator, card, text, more, stream):
    answer = post_to(simulator, ask(stream=stream, metadata={"user_id": f"sim:{text}"}, **more))
    line = next(line for line in reversed(simulator.journal()) if line["request_id"] == answer.headers["request-id"])
    if stream:
        meter = StreamMeter("claude-opus-5-5")
        for at in range(0, len(answer.body), 7):
            meter.feed(answer.body[at : at + 7])
        reading = meter.reading()
    else:
        reading = read_message(answer.body, requested_model="claude-opus-5-5")
    assert reading.certainty is Certainty.EXACT
    assert reading.metered is not None
    assert {name: getattr(reading.metered.usage, name) for name in _COLUMNS} == {name: line[name] for name in _COLUMNS}
    assert cost_nanos(card, reading.metered, at_us=0x5_FFFF_FFFF_FFFF) == (line["cost_nanos"], False)
    assert bool(reading.metered.segments) == line["billed"]
    assert (reading.metered.service_tier, reading.metered.inference_geo) == (line["service_tier"], line["inference_geo"])
    assert reading.stop_reason == line["stop_reason"]
    assert reading.message_id == line["message_id"]


@pytest.mark.parametrize("text", ANSWERS)
def test_json_and_stream_carry_the_same_final_usage(simulator, text):
    found = []
    for stream in (True, False):
        answer = post_to(simulator, ask(stream=stream, metadata={"user_id": f"sim:{text}"}))
        line = next(line for line in reversed(simulator.journal()) if line["request_id"] == answer.headers["request-id"])
        found.append((line["usage"], [{name: segment[name] for name in _COLUMNS} for segment in line["segments"]]))
    # The two bodies differ, hence so may lengths and stop reasons that were not asked for.
    if "output=" in text or "refusal" in text:
        assert found[0] == found[1]


def test_a_cut_stream_is_read_within_what_was_billed(simulator):
    """At any byte, the reader's estimate is no more than one event above what the journal bills, and no less than what arrived."""
    body = ask(stream=True)
    whole = len(post_to(simulator, body, x_sim_output="60").body)
    for at in range(0, whole, 97):
        answer = post_to(simulator, body, x_sim_output="60", x_sim_cut=str(at))
        line = next(line for line in reversed(simulator.journal()) if line["request_id"] == answer.headers["request-id"])
        meter = StreamMeter("claude-opus-5-5")
        meter.feed(answer.body)
        reading = meter.reading()
        if reading.metered is not None and reading.certainty is Certainty.PARTIAL:
            assert reading.metered.usage.uncached_input == line["uncached_input"]
            assert abs(reading.metered.usage.output - line["output"]) <= 8
