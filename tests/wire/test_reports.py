"""Pages of the provider's reports: recognised, dated, and kept byte for byte."""

from __future__ import annotations

import json

import pytest

from tokenweir.periods import DAY_US, parse_instant
from tokenweir.wire.reports import read_pages

START = "2026-11-01T00:00:00Z"


def bucket(*results: dict, end: str = "2026-11-02T00:00:00Z") -> dict:
    return {"starting_at": START, "ending_at": end, "results": list(results)}


USAGE = {"data": [bucket({"uncached_input_tokens": 1500, "output_tokens": 500, "model": "claude-opus-4-6"}), bucket(end="2026-11-03T00:00:00Z")]}
COST = {"data": [bucket({"amount": "123.78912", "currency": "USD"})], "has_more": False}
CLAUDE_CODE = {"data": [{"date": START, "actor": {}, "core_metrics": {"num_sessions": 1}, "model_breakdown": []}]}
ANALYTICS = {"data": [{"starting_at": START, "ending_at": START, "group": {}, "usage": {"uncached_input_tokens": 3}}]}
ANALYTICS_COST = {"data": [{"starting_at": START, "ending_at": START, "group": {}, "cost": {"amount": "1.5"}}]}


@pytest.mark.parametrize(
    ("page", "kind"),
    [(USAGE, "usage"), (COST, "cost"), (CLAUDE_CODE, "claude_code"), (ANALYTICS, "analytics_usage"), (ANALYTICS_COST, "analytics_cost")],
)
def test_a_page_shows_what_it_is(page, kind):
    content = json.dumps(page, indent=1).encode()
    (found,) = read_pages(content)
    assert (found.kind, found.content) == (kind, content)
    assert found.starting_at_us == parse_instant(START)


def test_a_page_covers_all_of_its_buckets():
    (found,) = read_pages(json.dumps(USAGE).encode())
    assert found.ending_at_us - found.starting_at_us == 2 * DAY_US
    assert found.rows == 1


def test_several_pages_may_be_a_list_or_lines_and_are_told_apart_by_their_content():
    for content in (json.dumps([USAGE, COST]), json.dumps(USAGE) + "\n" + json.dumps(COST) + "\n"):
        found = read_pages(content.encode())
        assert [page.kind for page in found] == ["usage", "cost"]
        assert len({page.report_id for page in found}) == 2


def test_a_page_of_empty_buckets_has_to_be_named():
    content = json.dumps({"data": [bucket()]}).encode()
    with pytest.raises(ValueError, match="--kind"):
        read_pages(content)
    assert read_pages(content, kind="usage")[0].rows == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JSON report"),
        (b"{", "not a JSON report"),
        (b"{}", "no list"),
        (b'{"data": []}', "--kind"),
        (b'{"data": [{"results": [{"amount": "1"}]}]}', "starting_at"),
        (b'{"data": [{"starting_at": "x", "results": [{"amount": "1"}]}]}', "not a date"),
        (b'[{"data": 5}]', "page 1 is no report"),
    ],
)
def test_what_is_no_report_is_refused_with_a_sentence(content, reason):
    with pytest.raises(ValueError, match=reason):
        read_pages(content)
    with pytest.raises(ValueError, match="no kind"):
        read_pages(json.dumps(COST).encode(), kind="money")
