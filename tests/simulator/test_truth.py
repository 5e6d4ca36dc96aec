"""The journal of truth: one line, once, whatever happens to the file around it."""

from __future__ import annotations

import json

from tokenweir.periods import format_instant
from tokenweir.simulator.truth import Attempt, Bill, Journal, _instant
from tokenweir.usage import Segment, Usage

NOW = 1_795_355_155_123_456


def attempt(journal, card):
    return Attempt(1, "req_1", received_us=NOW, journal=journal, card=card)


def test_an_attempt_ends_once_and_the_first_end_counts(tmp_path, card):
    file = tmp_path / "truth.jsonl"
    found = attempt(Journal(file), card)
    for outcome in ("cut", "complete"):
        found.end(outcome, now_us=NOW, status=200, bytes_sent=1)
    assert [json.loads(line)["outcome"] for line in file.read_text().splitlines()] == ["cut"]


def test_a_bill_is_rated_by_segment_and_an_unknown_model_is_flagged(tmp_path, card):
    file = tmp_path / "truth.jsonl"
    journal = Journal(file, sync=True)
    for model in ("claude-opus-5-5", "claude-new-9"):
        usage = Usage(uncached_input=1_000, output=10)
        bill = Bill(model, usage, (Segment("message", model, usage),), {"input_tokens": 1_000}, "standard", "", "global")
        attempt(journal, card).end("complete", now_us=NOW, status=200, bytes_sent=1, bill=bill)
    known, unknown = (json.loads(line) for line in file.read_text().splitlines())
    assert (known["cost_nanos"], known["unpriced"], known["billed"]) == (4_200_000, False, True)
    assert unknown["unpriced"] is True
    assert unknown["cost_nanos"] > known["cost_nanos"]


def test_counting_goes_on_behind_a_torn_line(tmp_path):
    file = tmp_path / "truth.jsonl"
    file.write_text('{"attempt": 7}\n{"attempt": 6}\n{"att')
    assert Journal(file).last_attempt == 7
    assert Journal(tmp_path / "new.jsonl").last_attempt == 0
    assert Journal(None).last_attempt == 0


def test_a_torn_line_does_not_swallow_the_next_one(tmp_path):
    file = tmp_path / "truth.jsonl"
    file.write_text('{"attempt": 7}\n{"att')
    Journal(file).append({"attempt": 8})
    assert file.read_text().splitlines()[-1] == '{"attempt":8}'


def test_the_cheap_instant_is_the_usual_one():
    for at in (NOW, NOW + 999_999, NOW - NOW % 60_000_000, 0):
        assert _instant(at) == format_instant(at)
