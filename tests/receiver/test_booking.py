"""What becomes of an export: each call once, at our own price; metrics beside the ledger, each point once."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from bookings import START_US, entry
from databases import DATABASES, settings_for
from exporting import SESSION, event, logs, metrics, point
from tokenweir import app
from tokenweir.ledger.rollups import ZERO
from tokenweir.ledger.sources import CLAUDE_CODE_OTEL
from tokenweir.metering.spend import Query, spend
from tokenweir.principals import Principal
from tokenweir.receiver.booking import FLAG_COST_DIFFERS, TelemetryBooks
from tokenweir.usage import Certainty
from tokenweir.wire.telemetry import COST_METRIC, TOKEN_METRIC, read_logs, read_metrics

ADA = Principal("org_1", "team_1", "key_ada", "org", "blue", "ada", tags=("cost:7",))


class _Clock:
    def now_us(self):
        return START_US

    def monotonic_ns(self):
        return 0


class _Books:
    def __init__(self, settings):
        self.store, self.sums = app.open_ledger(settings, create=True), app.open_telemetry_sums(settings)
        self.books = TelemetryBooks(self.store, self.sums, app.open_rate_card(settings), _Clock())

    def logs(self, *records, who=ADA):
        return self.books.take_logs(read_logs(json.dumps(logs(*records)).encode(), protobuf=False), who)

    def metrics(self, name, *points, **how):
        return self.books.take_metrics(read_metrics(json.dumps(metrics(name, *points, **how)).encode(), protobuf=False), ADA)

    def close(self):
        self.sums.close()
        self.store.close()


@pytest.fixture(params=DATABASES)
def books(request, tmp_path):
    with settings_for(request.param, tmp_path / "home") as settings, closing(_Books(settings)) as found:
        yield found


def test_a_call_becomes_an_entry_of_its_key_at_our_own_price(books):
    assert books.logs(event()).new == 1
    (booked,) = books.store.page()
    assert (booked.source, booked.certainty, booked.session_id) == (CLAUDE_CODE_OTEL, Certainty.PARTIAL, SESSION)
    assert (booked.organization_id, booked.team_id, booked.key_id) == ("org_1", "team_1", "key_ada")
    assert booked.cost_nanos == 5_092_000  # 11 x 2 + 2000 x 2.5 + 7 x 10 micro-dollars, as Claude Code says itself
    assert {"cost:7", "team:blue", "person:ada@example.org"} <= set(booked.tags)
    assert booked.flags == ("estimated",)


def test_an_export_that_is_sent_twice_changes_nothing(books):
    books.logs(event(), event(request_id="req_2"), event(without=("request_id",)))
    before = books.store.page()
    again = books.logs(event(), event(request_id="req_2"), event(without=("request_id",)))
    assert (again.new, again.matched) == (0, 3)
    assert books.store.page() == before
    assert len(before) == 3


def test_a_call_that_the_gateway_metered_is_matched_and_never_booked_again(books):
    seen = entry(1, begun={"request_id": "req_tw_ours"})
    books.store.book([seen])
    assert books.logs(event(request_id="req_tw_ours")).matched == 1
    assert books.store.page() == [seen]


def test_a_call_that_the_gateway_books_later_counts_once(books):
    books.logs(event(request_id="req_tw_ours"))
    seen = entry(1, begun={"request_id": "req_tw_ours"})
    books.store.book([seen])
    totals = spend(books.store, Query()).totals
    assert (totals.requests, totals.output, totals.cost_nanos) == (1, seen.usage.output, seen.cost_nanos)


def test_the_providers_own_request_id_ties_a_call_to_the_gateway_as_well(books):
    seen = entry(1, upstream_request_id="req_provider")
    books.store.book([seen])
    assert books.logs(event(request_id="req_provider")).matched == 1


def test_another_idea_of_the_cost_is_flagged_and_not_believed(books):
    books.logs(event(cost_usd_micros=15_092))
    (booked,) = books.store.page()
    assert FLAG_COST_DIFFERS in booked.flags
    assert booked.cost_nanos == 5_092_000


def test_a_model_without_a_price_is_flagged_and_never_free(books):
    books.logs(event(model="claude-tomorrow-9"))
    (booked,) = books.store.page()
    assert "unpriced" in booked.flags
    assert booked.cost_nanos > 0


def test_what_was_refused_is_counted_under_the_key(books):
    books.logs(event(output_tokens=-1), event(body="claude_code.user_prompt"), event())
    (progress,) = books.store.progress_of(CLAUDE_CODE_OTEL)
    assert progress.place == "otlp/key_ada"
    assert (progress.rows_read, progress.rows_skipped, progress.rows_refused, progress.booked.new) == (3, 1, 1, 1)
    assert "output_tokens" in progress.problem


def test_an_export_without_calls_touches_nothing(books):
    books.logs(event(body="claude_code.user_prompt"))
    assert books.store.progress_of(CLAUDE_CODE_OTEL) == []


def test_metrics_are_never_added_to_the_ledger(books):
    assert books.metrics(TOKEN_METRIC, point(11, type="input"), point(7, type="output")) == 2
    assert books.metrics(COST_METRIC, point(0.005092)) == 1
    assert books.store.page() == []
    assert spend(books.store, Query()).totals == ZERO
    sums = {one.token_type: one.amount for one in books.sums.telemetry_sums(0, 2**60)}
    assert sums == {"input": 11, "output": 7, "": 5_092_000}
