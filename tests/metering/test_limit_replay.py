"""The replay: planted ledgers with answers worked out by hand, and the decisions of the gateway's own limiter for the same traffic."""

from __future__ import annotations

import random
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookings import entry
from databases import DATABASES, settings_for
from metering.limit_desk import CARD, RED, Desk
from tokenweir import app
from tokenweir.ledger.adjustments import Truth, correct, standing
from tokenweir.limits.limit import Action, Cycle, Grant, Limit, Resource, Rolling, Scope
from tokenweir.limits.policy_file import NamedLimit
from tokenweir.metering.holding import Held
from tokenweir.metering.limit_replay import replay
from tokenweir.periods import SECOND_US, to_micros
from tokenweir.policies import Policy
from tokenweir.ports import KeyRecord
from tokenweir.pricing.rating import cost_nanos
from tokenweir.usage import Certainty, Metered, Segment, Usage

FROM = to_micros(datetime(2026, 11, 22, 12, 7, 30, tzinfo=UTC))
"""In the middle of a month, of a day, and of a quarter of an hour."""
TO = FROM + 3_600 * SECOND_US
MODEL = "claude-opus-4-5"
ORG = Scope("org_1")
MINUTE = Rolling(60 * SECOND_US)


def sent(number, at_s, *, lasts_s=1.0, cost=10, usage=None, model=MODEL, answered=None, request=None, ceiling=100, **begun):
    """An attempt that began `at_s` seconds after the replay does."""
    at_us = FROM + int(at_s * SECOND_US)
    opened = {"team_id": "team_1", "key_id": "key_1", "model_requested": model, "ceiling_nanos": ceiling, "tags": ()} | begun
    if request is not None:
        opened["request_id"] = request
    return entry(
        number,
        at_us=at_us,
        begun=opened,
        ended_at_us=at_us + int(lasts_s * SECOND_US),
        cost_nanos=cost,
        usage=usage or Usage(100, 10, 20, 400, 50),
        model=answered or model,
    )


def on(name, resource, amount, window=None, *, scope=ORG, **more):
    return NamedLimit(Limit("", name, scope, Resource(resource), amount, window, **more))


def key(key_id, *, owner="", tags=(), priority="normal"):
    return KeyRecord(key_id, "org_1", "acme", "team_1", "red", key_id, owner, tags, Policy(priority=priority), 0)


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """Replays entries in a ledger of their own."""

    def run(entries, limits, **more):
        with closing(app.open_ledger(app.Settings(data_dir=tmp_path_factory.mktemp("replay")), create=True)) as store:
            store.book(entries)
            return replay(store, limits, **{"card": CARD, "names": CARD, "since_us": FROM, "until_us": TO} | more)

    return run


def decided(report, name):
    found = next(one for one in report.limits if one.limit.limit.name == name)
    return {
        field: value
        for field in ("admitted", "refused", "refused_after_waiting", "waited", "downgraded", "warned", "shadowed")
        if (value := getattr(found, field))
    }


def of(report, name):
    return next(one for one in report.limits if one.limit.limit.name == name)


# Answers worked out by hand.


@pytest.mark.parametrize("database", DATABASES)
def test_a_strict_budget_admits_while_the_ceiling_fits_and_says_what_it_saves(database, tmp_path):
    """Room 35, ceilings of 12, costs of 10: after two, 20 are used, and 12 more fit; after three, 30 are, and none fits."""
    entries = [sent(n, n * 10, cost=10, ceiling=12, key_id=f"key_{n % 2}") for n in range(5)]
    with settings_for(database, tmp_path) as made, closing(app.open_ledger(made, create=True)) as store:
        store.book(entries)
        limits = [on("budget", "spend", 35, Cycle("day"), strict=True)]
        report = replay(store, limits, card=CARD, names=CARD, since_us=FROM, until_us=TO)
    assert decided(report, "budget") == {"admitted": 3, "refused": 2}
    found, totals = of(report, "budget"), report.totals
    assert (found.saved_nanos, totals.refused_nanos, totals.saved_nanos, totals.cost_nanos) == (20, 20, 20, 50)
    assert (found.peak.units, found.peak.room) == (32, 35)
    assert (found.first.at_us, found.first.request_id, found.first.key_id) == (FROM + 30 * SECOND_US, "req_tw_3", "key_1")
    assert [(one.key_id, one.requests, one.cost_nanos) for one in found.keys] == [("key_0", 1, 10), ("key_1", 1, 10)]
    assert (totals.requests, totals.admitted, totals.refused, totals.attempts, totals.refused_attempts) == (5, 3, 2, 5, 2)


def test_a_budget_that_is_not_strict_holds_what_was_used(books):
    """Room 35, costs of 10: three fit, whatever their ceilings are, and the fourth is let through with what is left."""
    report = books([sent(n, n * 10, ceiling=10**9) for n in range(5)], [on("budget", "spend", 35, Cycle("day"))])
    assert decided(report, "budget") == {"admitted": 4, "refused": 1}
    assert of(report, "budget").peak.units == 35


def test_a_request_that_runs_holds_its_room_until_it_ends(books):
    """Ceiling 60 of 100: the second does not fit beside the first, and does after it, when 10 are used."""
    entries = [sent(1, 0, lasts_s=30, ceiling=60), sent(2, 10, ceiling=60), sent(3, 29.999, ceiling=60), sent(4, 30, ceiling=60)]
    report = books(entries, [on("budget", "spend", 100, Cycle("day"), strict=True)])
    assert decided(report, "budget") == {"admitted": 2, "refused": 2}
    assert of(report, "budget").first.request_id == "req_tw_2"


def test_a_rolling_rate_flows_back_evenly(books):
    """Two a minute: one flows back every 30 seconds, so the third is too early at 2 s and at 29.999 s, and right at 30 s."""
    report = books([sent(n, at_s) for n, at_s in enumerate([0, 0, 2, 29.999, 30, 31, 60])], [on("rate", "requests", 2, MINUTE)])
    assert decided(report, "rate") == {"admitted": 4, "refused": 3}


def test_concurrency_counts_who_is_under_way(books):
    """Two at a time: at the instant one ends there is room for the next."""
    entries = [sent(1, 0, lasts_s=10), sent(2, 1, lasts_s=9), sent(3, 5), sent(4, 10), sent(5, 10), sent(6, 10.5)]
    report = books(entries, [on("two", "concurrency", 2)])
    assert decided(report, "two") == {"admitted": 4, "refused": 2}


@pytest.mark.parametrize(
    ("resource", "amount"),
    [("input_tokens", 130), ("output_tokens", 50), ("tokens", 580), ("requests", 1), ("spend", 10)],
)
def test_each_resource_is_counted_in_its_own_units(books, resource, amount):
    """100 uncached, 30 written, 400 read, 50 of output, for 10: exactly that fits once, and one unit less never does."""
    entries = [sent(1, 0), sent(2, 10)]
    assert decided(books(entries, [on("l", resource, amount, Cycle("day"))]), "l") == {"admitted": 1, "refused": 1}
    if amount > 1:
        assert decided(books(entries, [on("l", resource, amount - 1, Cycle("day"), strict=True)]), "l") == {"refused": 2}


def test_a_request_that_two_limits_refuse_is_saved_once(books):
    """Each limit shows it as its own; in the totals it is there one time."""
    limits = [on("a", "requests", 1, Cycle("day")), on("b", "spend", 10, Cycle("day")), on("c", "requests", 100, Cycle("day"))]
    report = books([sent(1, 0), sent(2, 10, cost=7)], limits)
    assert (of(report, "a").saved_nanos, of(report, "b").saved_nanos, of(report, "c").saved_nanos) == (7, 7, 0)
    assert report.totals.saved_nanos == 7
    assert decided(report, "c") == {"admitted": 1}


def test_a_refused_request_uses_nothing_and_neither_do_its_later_attempts(books):
    """Room 25: the second request (20, and 20 again) is refused with both its attempts, so that the third (15) fits."""
    entries = [
        sent(1, 0, cost=10, ceiling=10),
        sent(2, 10, cost=20, ceiling=20, request="r"),
        sent(3, 12, cost=20, ceiling=20, request="r", attempt_no=2),
        sent(4, 20, cost=15, ceiling=15),
    ]
    report = books(entries, [on("budget", "spend", 25, Cycle("day"), strict=True)])
    assert decided(report, "budget") == {"admitted": 2, "refused": 1}
    assert (report.totals.refused_attempts, report.totals.saved_nanos) == (2, 40)
    assert of(report, "budget").keys[0].cost_nanos == 40


def test_a_later_attempt_of_an_admitted_request_is_never_refused_and_counts(books):
    """Room 25: 10 and 10 again and 10 again are used; then nothing fits."""
    entries = [sent(n, n, lasts_s=0.5, request="r", attempt_no=n + 1) for n in range(3)] + [sent(9, 20, cost=1)]
    report = books(entries, [on("budget", "spend", 25, Cycle("day")), on("count", "requests", 4, Cycle("day"))])
    assert decided(report, "budget") == {"admitted": 1, "refused": 1}
    assert (report.totals.requests, report.totals.attempts) == (2, 4)
    assert of(report, "count").peak.units == 1


@pytest.mark.parametrize("database", DATABASES)
def test_what_was_used_before_counts_to_the_unit(database, tmp_path):
    """By rollups to the quarter of an hour, and attempt by attempt from there; corrected, and of the gateway alone. Of the last month nothing counts."""
    begins = datetime(2026, 11, 1, tzinfo=UTC).timestamp() - FROM / SECOND_US
    first = sent(1, begins, cost=100)
    early = [sent(0, begins - 1, lasts_s=60, cost=10_000), first, sent(2, -86_400, cost=20), sent(3, -460, cost=3), sent(4, -1, cost=4)]
    truth = Truth(Usage(), 1, first.model, Certainty.EXACT, (), "other")
    corrections = correct(standing([first]), truth, reason="rerate", now_us=FROM)
    other_model = sent(5, -100, cost=1_000, model="claude-haiku-4-5")
    with settings_for(database, tmp_path) as made, closing(app.open_ledger(made, create=True)) as store:
        store.book([*early, *corrections, other_model, sent(6, 1, ceiling=10), sent(7, 10, ceiling=10)])
        for amount, admitted in ((1 + 20 + 3 + 4 + 10, 1), (1 + 20 + 3 + 4 + 20, 2), (1 + 20 + 3 + 4 + 9, 0)):
            limits = [on("month", "spend", amount, Cycle("month"), models=("claude-opus-*",), strict=True)]
            report = replay(store, limits, card=CARD, names=CARD, since_us=FROM, until_us=TO)
            assert decided(report, "month").get("admitted", 0) == admitted
            assert report.totals.requests == 2


def test_what_flowed_into_a_rolling_limit_before_is_in_it(books):
    """A budget of 60 a minute: 50 used ten seconds before have leaked to 40 when the replay begins."""
    entries = [sent(1, -11, cost=50), sent(2, 0, cost=20), sent(3, 0, cost=1)]
    assert decided(books(entries, [on("rate", "spend", 60, MINUTE)]), "rate") == {"admitted": 1, "refused": 1}
    assert decided(books(entries[1:], [on("rate", "spend", 60, MINUTE)]), "rate") == {"admitted": 2}


def test_what_is_under_way_when_the_replay_begins_holds_its_place(books):
    """It began half an hour before, and ends ten seconds after."""
    entries = [sent(1, -1_800, lasts_s=1_810), sent(2, 5), sent(3, 10)]
    report = books(entries, [on("one", "concurrency", 1)])
    assert decided(report, "one") == {"admitted": 1, "refused": 1}


def test_a_request_that_began_before_is_not_decided_anew(books):
    """Its later attempt counts, and is not refused."""
    entries = [sent(1, -2, request="r"), sent(2, 1, request="r", attempt_no=2), sent(3, 5)]
    report = books(entries, [on("day", "requests", 2, Cycle("day"))])
    assert decided(report, "day") == {"refused": 1}
    assert (report.totals.attempts, report.totals.requests) == (2, 1)


def test_only_what_began_in_the_time_is_replayed(books):
    """The end is not included."""
    entries = [sent(1, -1), sent(2, 0), sent(3, 3_599), sent(4, 3_600)]
    report = books(entries, [on("day", "requests", 100, Cycle("day"))])
    assert (report.totals.requests, of(report, "day").peak.units) == (2, 3)


def test_a_cycle_ends_while_the_replay_runs(books):
    """Midnight in Kathmandu is at 18:15 UTC."""
    to_midnight = 6 * 3_600 + 450
    entries = [sent(n, at_s) for n, at_s in enumerate([0, 1, to_midnight - 1, to_midnight, to_midnight + 1])]
    report = books(entries, [on("day", "requests", 1, Cycle("day", "Asia/Kathmandu"))], until_us=FROM + 86_400 * SECOND_US)
    assert decided(report, "day") == {"admitted": 2, "refused": 3}


def test_limits_meet_whom_they_are_for(books):
    """Team, key, owner, tag, session and model; pooled or each for itself."""
    keys = [key("key_1", owner="ann", tags=("ci",)), key("key_2", owner="ann"), key("key_3", owner="bob")]
    entries = [
        sent(1, 0, tags=("ci",), session_id="s1"),
        sent(2, 1, key_id="key_2", session_id="s2"),
        sent(3, 2, key_id="key_3", session_id="s1"),
        sent(4, 3, key_id="key_4", team_id="team_2", model="claude-haiku-4-5"),
    ]
    limits = [
        on("org", "requests", 1, Cycle("day"), shadow=True),
        on("team", "requests", 1, Cycle("day"), scope=Scope("org_1", "team_1"), shadow=True),
        on("key", "requests", 1, Cycle("day"), scope=Scope("org_1", "team_1", "key_3"), shadow=True),
        on("ann", "requests", 1, Cycle("day"), scope=Scope("org_1", user="ann"), shadow=True),
        on("each", "requests", 1, Cycle("day"), scope=Scope("org_1", per="user"), shadow=True),
        on("each key", "requests", 1, Cycle("day"), scope=Scope("org_1", per="key"), shadow=True),
        on("tag", "requests", 1, Cycle("day"), scope=Scope("org_1", tag="ci"), shadow=True),
        on("session", "requests", 1, Cycle("day"), scope=Scope("org_1", per="session"), shadow=True),
        on("s1", "requests", 1, Cycle("day"), scope=Scope("org_1", session="s1"), shadow=True),
        on("haiku", "requests", 1, Cycle("day"), models=("claude-haiku-*",), shadow=True),
        on("other", "requests", 1, Cycle("day"), scope=Scope("org_2"), shadow=True),
    ]
    report = books(entries, limits, keys=keys)
    met = {one.limit.limit.name: (one.admitted, one.shadowed) for one in report.limits}
    assert met == {
        "org": (4, 3), "team": (3, 2), "key": (1, 0), "ann": (2, 1), "each": (4, 1), "each key": (4, 0), "tag": (1, 0),
        "session": (4, 1), "s1": (2, 1), "haiku": (1, 0), "other": (0, 0),
    }  # fmt: skip


def test_a_session_has_used_what_it_used_before(books):
    """Which the rollups do not know: it is counted from the entries of its cycle."""
    entries = [sent(1, -40_000, session_id="s1"), sent(2, -39_000, session_id="s2"), sent(3, 0, session_id="s1"), sent(4, 1, session_id="s2")]
    scope = Scope("org_1", per="session")
    report = books(
        entries, [on("session", "spend", 20, Cycle("day"), scope=scope), on("one", "spend", 20, Cycle("day"), scope=Scope("org_1", session="s1"))]
    )
    assert decided(report, "session") == {"admitted": 2}
    assert of(report, "session").peak.units == of(report, "one").peak.units == 20


def test_a_warning_and_a_shadow_let_pass_and_are_counted(books):
    """A shadow says what it would have saved; a warning saves nothing."""
    limits = [on("warn", "requests", 1, Cycle("day"), action=Action.WARN), on("shadow", "requests", 1, Cycle("day"), shadow=True)]
    entries = [sent(1, 0), sent(2, 10, cost=5, request="r"), sent(3, 12, cost=6, request="r", attempt_no=2)]
    report = books(entries, limits)
    assert decided(report, "warn") == {"admitted": 2, "warned": 1}
    assert decided(report, "shadow") == {"admitted": 2, "shadowed": 1}
    assert (of(report, "warn").saved_nanos, of(report, "shadow").saved_nanos) == (0, 11)
    assert (report.totals.saved_nanos, report.totals.shadow_nanos, report.totals.refused) == (0, 11, 0)


def test_requests_wait_in_order_and_get_in_or_are_refused_at_their_deadline(books):
    """One at a time, 10 seconds of patience. A 0-5; B waits 1-5, C 2-6; D (20 s) waits 3-7; E gives up at 14, F comes at 27 when D ends."""
    entries = [sent(1, 0, lasts_s=5), sent(2, 1), sent(3, 2), sent(4, 3, lasts_s=20), sent(5, 4), sent(6, 27)]
    report = books(entries, [on("one", "concurrency", 1, action=Action.QUEUE, queue_ms=10_000)])
    assert decided(report, "one") == {"admitted": 5, "refused": 1, "refused_after_waiting": 1, "waited": 3}
    found = of(report, "one")
    assert (found.wait_us_total, found.wait_us_max) == (12 * SECOND_US, 4 * SECOND_US)
    assert (found.first.request_id, found.first.at_us) == ("req_tw_5", FROM + 14 * SECOND_US)


def test_keys_take_turns_and_high_ones_go_first(books):
    """A runs for 8 s, each other for 2. Three of key_1 come at 1, 2 and 3, one of key_2 at 4, one of a key that goes first at 5.

    They get in at 8 (high), 10 (key_1), 12 (key_2), 14 and 16 (key_1): the last waited 13 s. In the order they came, nobody would have waited more than 12.
    """
    names = [("key_0", 0), ("key_1", 1), ("key_1", 2), ("key_1", 3), ("key_2", 4), ("key_3", 5)]
    entries = [sent(n, at_s, lasts_s=8 if n == 0 else 2, key_id=key_id) for n, (key_id, at_s) in enumerate(names)]
    limits = [on("one", "concurrency", 1, action=Action.QUEUE, queue_ms=20_000)]
    report = books(entries, limits, keys=[key("key_3", priority="high")])
    assert decided(report, "one") == {"admitted": 6, "waited": 5}
    found = of(report, "one")
    assert (found.wait_us_total, found.wait_us_max) == (45 * SECOND_US, 13 * SECOND_US)


def test_who_gives_up_at_the_instant_room_is_given_back_still_gets_it(books):
    """The gateway looks a last time before it refuses."""
    limits = [on("one", "concurrency", 1, action=Action.QUEUE, queue_ms=4_000)]
    report = books([sent(1, 0, lasts_s=5), sent(2, 1), sent(3, 0.5)], limits)
    assert decided(report, "one") == {"admitted": 2, "refused": 1, "refused_after_waiting": 1, "waited": 1}
    assert of(report, "one").first.request_id == "req_tw_3"


def test_a_line_that_is_full_refuses_at_once(books):
    """A hundred of one key wait, and no more."""
    limits = [on("one", "concurrency", 1, action=Action.QUEUE, queue_ms=600_000)]
    report = books([sent(n, 0 if n == 0 else 1, lasts_s=500) for n in range(103)], limits)
    assert decided(report, "one") == {"admitted": 2, "refused": 101, "refused_after_waiting": 101, "waited": 1}
    assert of(report, "one").first.at_us == FROM + SECOND_US


def test_a_rate_that_queues_lets_in_when_enough_has_leaked(books):
    """Two a minute, 40 seconds of patience: the third waits 30 s, the fourth would wait 60 s and gives up after 40."""
    entries = [sent(n, 0, key_id=f"key_{n}") for n in range(4)]
    report = books(entries, [on("rate", "requests", 2, MINUTE, action=Action.QUEUE, queue_ms=40_000)])
    assert decided(report, "rate") == {"admitted": 3, "refused": 1, "refused_after_waiting": 1, "waited": 1}
    assert of(report, "rate").wait_us_total == 30 * SECOND_US


def test_a_limit_that_does_not_queue_refuses_at_once(books):
    """Even if another one would let the request wait."""
    limits = [on("one", "concurrency", 1, action=Action.QUEUE, queue_ms=10_000), on("day", "requests", 1, Cycle("day"))]
    report = books([sent(1, 0, lasts_s=5), sent(2, 1)], limits)
    assert decided(report, "day") == {"admitted": 1, "refused": 1}
    assert report.totals.refused == 1


def test_attempts_of_a_request_that_waits_follow_it(books):
    """If it gets in they are sent, if not they are not."""
    entries = [sent(1, 0, lasts_s=5), sent(2, 1, request="r"), sent(3, 3, request="r", attempt_no=2)]
    for patience_ms, attempts_refused in ((10_000, 0), (3_000, 2)):
        report = books(entries, [on("one", "concurrency", 1, action=Action.QUEUE, queue_ms=patience_ms)])
        assert report.totals.refused_attempts == attempts_refused


def test_a_downgrade_is_priced_by_the_other_model(books):
    """The difference is saved, exactly; the limit has no part in the other model."""
    usage, haiku = Usage(100_000, 0, 0, 0, 10_000), "claude-haiku-4-5"

    def price(model):
        return cost_nanos(CARD, Metered(model, usage, (Segment("message", model, usage),)), at_us=FROM)[0]

    cost = price(MODEL)
    limits = [
        on("opus", "spend", cost, Cycle("day"), models=("claude-opus-*",), action=Action.DOWNGRADE, downgrade_to=haiku),
        on("haiku", "spend", price(haiku), Cycle("day"), models=("claude-haiku-*",)),
    ]
    report = books([sent(n, n * 10, cost=cost, usage=usage) for n in range(3)], limits)
    assert decided(report, "opus") == {"admitted": 1, "downgraded": 1}
    assert decided(report, "haiku") == {"admitted": 1, "refused": 1}
    assert report.totals.downgrade_saved_nanos == of(report, "opus").saved_nanos == cost - price(haiku) > 0
    assert report.totals.saved_nanos == cost - price(haiku) + cost


def test_a_model_that_answered_for_another_counts_where_it_is_covered(books):
    """An alias is the same model; a fallback is charged to the limits of both."""
    limits = [on("opus", "spend", 100, Cycle("day"), models=("claude-opus-*",)), on("haiku", "spend", 100, Cycle("day"), models=("claude-haiku-*",))]
    entries = [sent(1, 0, answered="claude-opus-4-5-20251101"), sent(2, 10, answered="claude-haiku-4-5"), sent(3, 20)]
    report = books(entries, limits)
    assert decided(report, "opus") == {"admitted": 3}
    assert decided(report, "haiku") == {"admitted": 1}
    assert of(report, "opus").peak.units == 20


def test_overshoot_is_carried_into_the_next_cycle(books):
    """A day with room for 15: two of 10 are under way at once, so 20 are used, and 10 are left of the next day."""
    midnight = 11 * 3_600 + 52 * 60 + 30
    entries = [
        sent(1, 0, cost=10, ceiling=1),
        sent(2, 0.5, cost=10, ceiling=1),
        sent(3, midnight + 1, cost=10, ceiling=1),
        sent(4, midnight + 9, ceiling=1),
    ]
    for carry_over, admitted in ((True, 3), (False, 4)):
        report = books(entries, [on("day", "spend", 15, Cycle("day"), strict=True, carry_over=carry_over)], until_us=FROM + 86_400 * SECOND_US)
        assert decided(report, "day")["admitted"] == admitted


def test_grants_count_if_they_are_given(books):
    """By the name of the limit: an increase, and a credit."""
    entries = [sent(n, n * 10) for n in range(6)]
    limits = [on("day", "requests", 2, Cycle("day"))]
    grants = {"day": (Grant("g1", "x", "increase", 1, FROM - 1), Grant("g2", "x", "credit", 2, FROM - 1))}
    assert decided(books(entries, limits), "day") == {"admitted": 2, "refused": 4}
    assert decided(books(entries, limits, grants=grants), "day") == {"admitted": 5, "refused": 1}


def test_what_is_taken_for_granted_is_said(books):
    """Only what matters for these limits."""
    plain = books([sent(1, 0)], [on("day", "requests", 2, Cycle("day"))]).assumptions
    more = books([sent(1, 0)], [on("q", "output_tokens", 2, MINUTE, strict=True, action=Action.END)]).assumptions
    assert not any("Strict" in one for one in plain)
    assert any("Strict limits on tokens" in one for one in more)
    assert any("Streams are not ended" in one for one in more)


@pytest.mark.parametrize(("more", "said"), [({"until_us": FROM}, "ends after it begins"), ({"limits": []}, "no limit")])
def test_a_replay_of_nothing_is_refused(books, more, said):
    """In one sentence."""
    with pytest.raises(ValueError, match=said):
        books([], more.pop("limits", [on("l", "requests", 1, MINUTE)]), **more)


def test_progress_is_told_as_the_replay_goes_on(books):
    """How many, and up to when."""
    told = []
    books([sent(1, 5)], [on("l", "requests", 1, MINUTE)], progress=lambda number, at_us: told.append((number, at_us)))
    assert told == [(0, FROM + 5 * SECOND_US)]


# Against the gateway's own limiter.


def traffic(seed, count=120):
    """Requests of one key in order of time, each with when it ends, what it costs, and for which model."""
    chance = random.Random(seed)
    at_us = FROM
    made = []
    for _ in range(count):
        at_us += chance.choice([0, 1, 40_000, 900_000, 7_000_000])
        made.append(
            (
                at_us,
                at_us + chance.choice([0, 1, 500_000, 3_000_000, 60_000_000]),
                chance.randrange(1, 2_000_000),
                chance.choice(["claude-sonnet-5-5", "claude-haiku-4-5"]),
            )
        )
    return made


def limits_like(shadow):
    """Limits whose demand is the same live and replayed: counts, and the ceilings of strict spend."""
    scope = Scope("org")
    return [
        Limit("", "rate", scope, Resource.REQUESTS, 6, Rolling(30 * SECOND_US), shadow=shadow),
        Limit("", "day", Scope("org", per="key"), Resource.REQUESTS, 80, Cycle("day"), shadow=shadow),
        Limit("", "spend", Scope("org", "team_red"), Resource.SPEND, 90_000_000, Cycle("month"), strict=True, shadow=shadow),
        Limit("", "haiku", scope, Resource.SPEND, 60_000_000, Rolling(60 * SECOND_US), models=("claude-haiku-*",), strict=True, shadow=shadow),
        Limit("", "three", scope, Resource.CONCURRENCY, 3, None, shadow=shadow),
    ]


@pytest.mark.parametrize("shadow", [True, False])
@pytest.mark.parametrize("seed", range(4))
async def test_the_gateway_decides_the_same_for_the_same_traffic(books, seed, shadow):
    """What shadows record live, and what limits refuse live, is what the replay says of the ledger of all that was asked."""
    limits = [Limit(**{name: getattr(one, name) for name in one.__struct_fields__} | {"limit_id": one.name}) for one in limits_like(shadow)]
    desk = Desk(*limits)
    desk.clock.us = FROM
    under_way, entries, live = [], [], {one.name: [0, 0] for one in limits}

    def advance(until_us):
        while under_way and min(under_way, key=lambda one: one[:2])[0] <= until_us:
            chosen = min(under_way, key=lambda one: one[:2])
            under_way.remove(chosen)
            desk.clock.us = chosen[0]
            held, booked = chosen[2:]
            held.add(booked, booked_from[booked.attempt_id])
            held.end()

    booked_from = {}
    for number, (started_us, ended_us, cost, model) in enumerate(traffic(seed)):
        advance(started_us)
        desk.clock.us = started_us
        asking = desk.asking(RED, model=model)
        booked = entry(
            number,
            at_us=started_us,
            begun={
                "organization_id": "org", "team_id": "team_red", "key_id": "key_1", "model_requested": model, "ceiling_nanos": asking.ceiling_nanos,
            },
            ended_at_us=ended_us,
            cost_nanos=cost,
            model=model,
        )  # fmt: skip
        entries.append(booked)
        booked_from[booked.attempt_id] = started_us
        answer = await desk.limiter.admit(asking)
        if isinstance(answer, Held):
            for index, link in enumerate(answer.chain.links):
                live[link.limit.name][0] += 1
                live[link.limit.name][1] += index in answer.over
            under_way.append((ended_us, number, answer, settlement_of(booked)))
        else:
            assert not shadow
    advance(2**62)
    desk.close()
    report = books(entries, [NamedLimit(one) for one in limits_like(shadow)], until_us=FROM + 86_400 * SECOND_US)
    found = {one.limit.limit.name: [one.admitted, one.shadowed] for one in report.limits}
    assert found == live
    assert report.totals.admitted + report.totals.refused == len(entries)
    assert (report.totals.refused > 0) is not shadow


def settlement_of(booked):
    from tokenweir.ledger.entries import Settlement

    return Settlement(booked.attempt_id, booked.ended_at_us, 200, Certainty.EXACT, booked.usage, booked.cost_nanos, booked.model)


# What holds for any traffic.

ATTEMPT = st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(0, 9), st.integers(0, 25))
LIMITS = st.lists(
    st.tuples(
        st.sampled_from([("requests", MINUTE), ("spend", Cycle("day")), ("concurrency", None), ("spend", Rolling(20 * SECOND_US))]),
        st.integers(1, 12),
        st.sampled_from([Action.BLOCK, Action.QUEUE, Action.WARN]),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


class Planted:
    """A ledger of entries in memory, with no past."""

    def __init__(self, entries):
        self._entries = sorted(entries, key=lambda one: one.entry_id)

    def extent(self):
        return None

    @contextmanager
    def snapshot(self):
        yield self

    def entries(self, *, since_us, until_us):
        return (one for one in self._entries if since_us <= one.started_at_us < until_us)


@settings(max_examples=300, deadline=None)
@given(st.lists(ATTEMPT, max_size=20), LIMITS)
def test_every_request_is_decided_once_and_every_nano_is_spent_or_saved(made, drawn):
    """And no enforced limit is ever passed by what was admitted, if a request is one attempt."""
    entries = [
        sent(n, at_s, lasts_s=lasts_s, cost=cost, key_id=f"key_{request % 3}", request=f"r{request}")
        for n, (at_s, lasts_s, cost, request) in enumerate(made)
    ]
    limits = [
        on(f"l{n}", resource, amount, window, action=action, queue_ms=5_000 if action is Action.QUEUE else 0, shadow=shadow)
        for n, ((resource, window), amount, action, shadow) in enumerate(drawn)
    ]
    report = replay(Planted(entries), limits, card=CARD, names=CARD, since_us=FROM, until_us=TO)
    totals = report.totals
    assert totals.requests == len({one.request_id for one in entries}) == totals.admitted + totals.refused
    assert totals.attempts == len(entries)
    assert totals.cost_nanos == sum(one.cost_nanos for one in entries)
    assert 0 <= totals.refused_nanos <= totals.cost_nanos
    assert totals.refused <= sum(one.refused for one in report.limits)
    assert totals.waited <= sum(one.waited for one in report.limits) <= totals.admitted
    single = totals.requests == totals.attempts
    for one in report.limits:
        assert one.admitted + one.refused <= totals.requests
        if one.limit.limit.enforced and single and one.peak is not None:
            assert one.peak.units <= one.peak.room
