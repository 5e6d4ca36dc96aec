"""The book of limits: every limit that covers a request, in one order, and nothing remembered that is not true any more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metering.limit_desk import BLUE, CARD, MODEL, RED, START_US, limit
from tokenweir.limits.book import LimitBook, seat_of
from tokenweir.limits.bucket import Kind
from tokenweir.limits.grants import Allowance
from tokenweir.limits.limit import Cycle, Grant, Limit, Rolling, Scope

DAY_US = 86_400_000_000


def book_of(*limits: Limit, grants: tuple[Grant, ...] = (), complete_since_us: int | None = 0) -> LimitBook:
    book = LimitBook(canonical=CARD.resolve, complete_since_us=complete_since_us)
    book.update([(one, [grant for grant in grants if grant.limit_id == one.limit_id]) for one in limits])
    return book


def met(book: LimitBook, principal=RED, model: str = MODEL, *, session: str = "", at_us: int = START_US, others: tuple[str, ...] = ()) -> list[str]:
    return [link.limit.limit_id for link in book.chain(principal, model, others=others, session=session, now_us=at_us).links]


def test_the_chain_goes_from_the_organization_inward():
    """Whatever order they were set in, outer limits come first, and those of others not at all."""
    book = book_of(
        limit("key", "requests", 1, key="key_1"),
        limit("other", "requests", 1, team="team_blue"),
        limit("team", "requests", 1, team="team_red"),
        limit("org", "requests", 1),
    )
    assert met(book) == ["org", "team", "key"]
    assert met(book, BLUE) == ["org", "other"]


def test_a_change_holds_from_the_next_request_on():
    """A chain that was remembered is made anew when a limit is set, changed or removed."""
    book = book_of(limit("a", "requests", 1))
    assert met(book) == ["a"]
    before = book.version
    book.update([(limit("b", "requests", 1), ()), (limit("a", "requests", 7), ())])
    assert met(book) == ["b", "a"]
    assert book.chain(RED, MODEL, session="", now_us=START_US).links[1].bucket.room == 7
    book.update([], ["a"])
    assert met(book) == ["b"]
    assert book.version > before
    book.update([(limit("c", "requests", 1), ())], whole=True)
    assert met(book) == ["c"]
    assert len(book) == 1


def test_what_was_used_before_a_limit_was_set_is_asked_of_the_ledger():
    """A gateway that has run since the cycle began has not counted for a limit that was set after it began."""
    windows = {"month": Cycle("month"), "hour": Rolling(3_600_000_000)}
    limits = [limit(name, "requests", 5, window, created_at_us=START_US) for name, window in windows.items()]
    book = book_of(*limits, complete_since_us=0)

    def fresh(at_us: int) -> list[bool]:
        return [bucket.fresh for bucket in book.chain(RED, MODEL, session="", now_us=at_us).buckets]

    assert fresh(START_US) == [False, False]
    assert fresh(START_US + 3_600_000_000) == [False, True]
    assert fresh(START_US + 32 * DAY_US) == [True, True]


def test_a_fallback_model_is_covered_too():
    """A request that may run on another model meets the limits of both, and such a chain is not taken for the one without."""
    book = book_of(limit("haiku", "requests", 1, models=("claude-haiku-*",)))
    assert met(book, others=("claude-haiku-4-5",)) == ["haiku"]
    assert met(book) == []


def test_sessions_are_told_apart_only_where_a_limit_does():
    """With a limit on sessions each has a chain of its own; without one they share it."""
    book = book_of(limit("each", "requests", 1, scope={"per": "session"}))
    ids = [book.chain(RED, MODEL, session=name, now_us=START_US).buckets[0].bucket_id for name in ("s1", "s2", "s1", "")]
    assert ids[0] == ids[2] != ids[1]
    assert ids[3].startswith(f"each|{RED.key_id}|")
    plain = book_of(limit("all", "requests", 1))
    assert plain.chain(RED, MODEL, session="s1", now_us=START_US) is plain.chain(RED, MODEL, session="s2", now_us=START_US)


def test_who_cannot_be_told_apart_never_shares_with_others():
    """A key without an owner, and a request without a session, sit on the seat of the key."""
    assert seat_of(Scope("org", per="user"), BLUE, "") == BLUE.key_id
    assert seat_of(Scope("org", per="user"), RED, "") == RED.owner
    assert seat_of(Scope("org", per="session"), RED, "") == RED.key_id
    assert seat_of(Scope("org", per="team"), RED, "") == RED.team_id
    assert seat_of(Scope("org"), RED, "s") == ""


def test_each_window_has_its_kind_of_bucket():
    """Calendar cycles count, rolling windows leak, concurrency is held."""
    book = book_of(limit("cycle", "tokens", 10), limit("rolling", "tokens", 10, Rolling(60_000_000, burst=4)), limit("gauge", "concurrency", 3))
    cycle, rolling, gauge = book.chain(RED, MODEL, session="", now_us=START_US).buckets
    assert (cycle.kind, cycle.room, cycle.fresh) == (Kind.COUNTER, 10, True)
    assert cycle.bucket_id == f"cycle||{book.link(limit('cycle', 'tokens', 10), '', now_us=START_US).starts_us}"
    assert (rolling.kind, rolling.room, rolling.refill, rolling.period_us) == (Kind.LEVEL, 4, 10, 60_000_000)
    assert (gauge.kind, gauge.room) == (Kind.GAUGE, 3)


def test_what_began_before_we_were_there_must_be_looked_up():
    """A cycle that was running, or a window that reaches back before the process began, is not taken for empty."""
    limits = (limit("day", "requests", 5, Cycle("day")), limit("rolling", "requests", 5, Rolling(3_600_000_000)))
    book = book_of(*limits, complete_since_us=START_US)
    assert [bucket.fresh for bucket in book.chain(RED, MODEL, session="", now_us=START_US + 1).buckets] == [False, False]
    later = START_US + DAY_US
    assert [bucket.fresh for bucket in book.chain(RED, MODEL, session="", now_us=later).buckets] == [True, True]


def test_a_shared_store_is_asked_for_everything_but_short_windows():
    """Others may have used what we did not see; windows of up to an hour are let go of when the store has lost them."""
    limits = (limit("day", "requests", 5, Cycle("day")), limit("hour", "requests", 5, Rolling(3_600_000_000)))
    book = book_of(*limits, limit("long", "requests", 5, Rolling(3_600_000_001)), complete_since_us=None)
    assert [bucket.fresh for bucket in book.chain(RED, MODEL, session="", now_us=START_US).buckets] == [False, True, False]


@given(hours=st.lists(st.integers(0, 24 * 70), min_size=1, max_size=20))
def test_at_every_moment_the_bucket_is_that_of_the_running_cycle(hours):
    """However time goes (also back, as for an attempt that began before midnight), the chain is the one of that moment."""
    book = book_of(limit("month", "requests", 5, Cycle("month", "Europe/Berlin")))
    for hour in hours:
        at_us = START_US + hour * 3_600_000_000
        fresh = book_of(limit("month", "requests", 5, Cycle("month", "Europe/Berlin")))
        link = book.link(limit("month", "requests", 5, Cycle("month", "Europe/Berlin")), "", now_us=at_us)
        assert link.starts_us <= at_us < link.bucket.ends_us
        assert link == fresh.link(limit("month", "requests", 5, Cycle("month", "Europe/Berlin")), "", now_us=at_us)


def test_an_increase_ends_by_itself():
    """The room is raised while it lasts; the chain that was made meanwhile does not outlive it."""
    ends_us = START_US - START_US % 900_000_000 + 900_000_000
    more = Grant("g", "slots", "increase", 4, effective_at_us=START_US - 1, expires_at_us=ends_us)
    book = book_of(limit("slots", "concurrency", 1), grants=(more,))
    chain = book.chain(RED, MODEL, session="", now_us=START_US)
    assert (chain.buckets[0].room, chain.valid_until_us) == (5, ends_us)
    assert book.chain(RED, MODEL, session="", now_us=ends_us).buckets[0].room == 1


def test_room_that_depends_on_past_use_must_be_put_in_first():
    """A limit with a credit is not known until somebody has worked it out, and again when that is no longer valid."""
    credit = Grant("g", "month", "credit", 4, effective_at_us=START_US - DAY_US)
    book = book_of(limit("month", "requests", 1), grants=(credit,))
    (unknown,) = book.chain(RED, MODEL, session="", now_us=START_US).unknown
    book.allow(unknown, Allowance(5, START_US + 10, ()))
    chain = book.chain(RED, MODEL, session="", now_us=START_US)
    assert (chain.unknown, chain.buckets[0].room, chain.valid_until_us) == ((), 5, START_US + 10)
    assert book.chain(RED, MODEL, session="", now_us=START_US + 10).unknown


def test_a_room_that_depends_on_corrected_use_is_unknown_again():
    """Of that limit and seat alone; a limit without such a room is not touched."""
    credit = Grant("g", "month", "credit", 4, effective_at_us=START_US - DAY_US)
    made = limit("month", "requests", 1)
    book = book_of(made, grants=(credit,))
    (unknown,) = book.chain(RED, MODEL, session="", now_us=START_US).unknown
    book.allow(unknown, Allowance(5, START_US + 10, ()))
    known = book.chain(RED, MODEL, session="", now_us=START_US)
    book.disallow(made, "other-seat")
    assert book.chain(RED, MODEL, session="", now_us=START_US) is known
    book.disallow(made, "")
    assert book.chain(RED, MODEL, session="", now_us=START_US).unknown


def test_models_are_the_same_in_any_spelling():
    """A dated id and its alias are one model; two that the card does not know are not."""
    book = book_of()
    assert book.same_model("claude-sonnet-4-5", "claude-sonnet-4-5-20250929")
    assert book.same_model("mine", "mine")
    assert not book.same_model("mine", "yours")
