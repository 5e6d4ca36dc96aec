"""The engine with exact times, and what only it does: forgetting, and being told. The rules of all stores are in tests/storage/test_limit_stores.py."""

from __future__ import annotations

import pytest

from tokenweir.limits import buckets as engine
from tokenweir.limits.bucket import NEVER, Bucket, Kind, Refused, Reserved, Seed, Shortage, Standing, Unseeded
from tokenweir.limits.buckets import CHARGES_KEPT, IDLE_US, KEPT_US, Buckets
from tokenweir.periods import DAY_US, SECOND_US

NOW = 1_800_000_000_000_000
MINUTE_US = 60 * SECOND_US


def counter(name: str = "counter", room: int = 10, **more) -> Bucket:
    return Bucket(name, Kind.COUNTER, room, **{"fresh": True, "ends_us": NOW + DAY_US} | more)


def level(name: str = "level", room: int = 60, **more) -> Bucket:
    return Bucket(name, Kind.LEVEL, room, **{"fresh": True, "refill": 60, "period_us": MINUTE_US} | more)


def gauge(name: str = "gauge", room: int = 10, **more) -> Bucket:
    return Bucket(name, Kind.GAUGE, room, **more)


def standing(buckets: Buckets, bucket: Bucket, now_us: int = NOW) -> Standing | None:
    return buckets.standings([bucket], now_us=now_us)[0]


# Buckets that nobody knows yet


def test_use_that_comes_while_the_ledger_is_read_is_not_lost():
    """A request ends of which the new bucket is not told: what is read from before is not believed, what is read after it is."""
    buckets, new = Buckets(), counter("new", fresh=False)
    buckets.reserve("h1", [counter()], [1], now_us=NOW)
    assert buckets.reserve("h2", [new], [1], now_us=NOW) == Unseeded((0,))
    buckets.settle("h1", [1], also=[(new, 7)], now_us=NOW + 5)
    buckets.seed([Seed(new, 0, at_us=NOW)])
    assert standing(buckets, new) is None
    buckets.seed([Seed(new, 0, at_us=NOW)])
    buckets.seed([Seed(new, 7, at_us=NOW + 6)])
    assert standing(buckets, new, NOW + 6) == Standing(7, 0)


def test_use_that_comes_after_the_books_were_opened_is_added_to_what_they_said():
    """What was settled after the snapshot was taken is not in it for sure, so nothing has to be read again."""
    buckets, new = Buckets(), counter("new", room=10**9, fresh=False)
    for n, at_us in enumerate((NOW - 1, NOW + 2_000, NOW + 3_000)):
        buckets.reserve(f"h{n}", [counter()], [1], now_us=NOW)
        buckets.settle(f"h{n}", [1], also=[(new, 7)], now_us=at_us)
    buckets.seed([Seed(new, 100, at_us=NOW, read_us=NOW + 500)])
    assert standing(buckets, new) == Standing(114, 0)


def test_where_requests_end_all_the_time_the_ledger_is_not_read_for_ever():
    """After two readings that something came in between of, it is added on top: never too little."""
    buckets, new = Buckets(), counter("new", room=10**9, fresh=False)
    for n in range(3):
        buckets.reserve(f"h{n}", [counter()], [1], now_us=NOW)
        buckets.settle(f"h{n}", [1], also=[(new, 7)], now_us=NOW + 10 * n + 5)
        assert standing(buckets, new) is None
        buckets.seed([Seed(new, 100, at_us=NOW + 10 * n)])
    assert standing(buckets, new) == Standing(107, 0)


# Time


def test_a_rate_to_the_microsecond():
    """Sixty a minute are sixty at once and then one a second, neither a microsecond early nor late."""
    buckets, bucket = Buckets(), level(taken=True)
    for n in range(60):
        assert isinstance(buckets.reserve(f"h{n}", [bucket], [1], now_us=NOW), Reserved)
    assert buckets.reserve("h60", [bucket], [1], now_us=NOW) == Refused((Shortage(0, Standing(60, 0), SECOND_US),))
    early = buckets.reserve("h60", [bucket], [1], now_us=NOW + SECOND_US - 1)
    assert early == Refused((Shortage(0, Standing(60, 0), 1),))
    assert buckets.reserve("h60", [bucket], [1], now_us=NOW + SECOND_US) == Reserved((Standing(60, 0),))


def test_what_is_held_of_a_level_does_not_leak():
    """Tokens that a request may still use stay held however long it runs, and leak only once they are used."""
    buckets, bucket = Buckets(), level()
    buckets.reserve("h1", [bucket], [60], now_us=NOW)
    assert buckets.reserve("h2", [bucket], [1], now_us=NOW + DAY_US) == Refused((Shortage(0, Standing(0, 60), 0),))
    buckets.settle("h1", [30], now_us=NOW + DAY_US)
    assert standing(buckets, bucket, NOW + DAY_US) == Standing(30, 0)
    assert standing(buckets, bucket, NOW + DAY_US + 30 * SECOND_US) == Standing(0, 0)


def test_a_level_in_between_is_told_upward():
    """Half a unit that has not leaked yet is told as one: what is told to remain can be had."""
    buckets, bucket = Buckets(), level(taken=True)
    buckets.reserve("h1", [bucket], [1], now_us=NOW)
    assert standing(buckets, bucket, NOW + SECOND_US // 2) == Standing(1, 0)
    assert standing(buckets, bucket, NOW + SECOND_US) == Standing(0, 0)


def test_a_seeded_level_leaks_from_when_it_was_true():
    """What the ledger said as of a minute ago has leaked for a minute."""
    buckets, bucket = Buckets(), level(fresh=False)
    buckets.seed([Seed(bucket, 90, NOW - MINUTE_US)])
    assert standing(buckets, bucket) == Standing(30, 0)


def test_a_changed_rate_changes_what_leaks_from_then_on():
    """Until it is first seen the old rate holds, and what is left then stays the same in units, also for another period."""
    buckets = Buckets()
    buckets.reserve("h1", [level(taken=True)], [60], now_us=NOW)
    faster = level(room=100, refill=1000, period_us=10 * SECOND_US, taken=True)
    now_us = NOW + 10 * SECOND_US
    assert buckets.reserve("h2", [faster], [10], now_us=now_us) == Reserved((Standing(60, 0),))
    assert standing(buckets, faster, now_us + SECOND_US // 10) == Standing(50, 0)


def test_another_period_does_not_give_room_away():
    """A level that cannot be told exactly in the new period is rounded up."""
    buckets = Buckets()
    buckets.reserve("h1", [level(room=1, refill=1, period_us=7, taken=True)], [1], now_us=NOW)
    # Three sevenths are left; in fifths they are two and a bit, so three.
    buckets.reserve("h2", [level(room=10, refill=1, period_us=5, taken=True)], [0], now_us=NOW + 4)
    assert standing(buckets, level(), NOW + 6) == Standing(1, 0)
    assert standing(buckets, level(), NOW + 7) == Standing(0, 0)


def test_a_burst_smaller_than_the_amount():
    """The room bounds what goes at once, the refill what goes in the long run."""
    buckets, bucket = Buckets(), level(room=5, refill=60, taken=True)
    admitted = sum(isinstance(buckets.reserve(f"h{n}", [bucket], [1], now_us=NOW + n * 100_000), Reserved) for n in range(600))
    assert admitted == 5 + 59


def test_a_clock_that_steps_back():
    """Nothing leaks and nothing fails while the clock is behind; the wait includes the way back."""
    buckets, bucket = Buckets(), level(taken=True)
    buckets.reserve("h1", [bucket], [60], now_us=NOW)
    refused = buckets.reserve("h2", [bucket], [1], now_us=NOW - 10 * SECOND_US)
    assert refused == Refused((Shortage(0, Standing(60, 0), 11 * SECOND_US),))
    assert isinstance(buckets.reserve("h2", [bucket], [1], now_us=NOW + SECOND_US), Reserved)


# Mistakes of whoever calls


def test_a_settlement_of_another_length_changes_nothing():
    """Numbers that are not the hold's are refused whole, and the hold stays to be settled."""
    buckets, several = Buckets(), [counter("a"), counter("b")]
    buckets.reserve("h1", several, [1, 1], now_us=NOW)
    with pytest.raises(ValueError, match="hold h1 is of 2 buckets and was settled with 1 numbers"):
        buckets.settle("h1", [1], now_us=NOW)
    assert buckets.standings(several, now_us=NOW) == [Standing(0, 1), Standing(0, 1)]
    with pytest.raises(ValueError, match="zip"):
        buckets.reserve("h2", several, [1], now_us=NOW)
    with pytest.raises(ValueError, match="zip"):
        buckets.extend("h1", [1, 1, 1], now_us=NOW)
    assert buckets.standings(several, now_us=NOW) == [Standing(0, 1), Standing(0, 1)]


def test_a_limit_that_became_another_kind():
    """A bucket whose limit now counts in another way is a new one; who still holds the old one cannot disturb it."""
    buckets = Buckets()
    buckets.reserve("h1", [gauge("x")], [3], now_us=NOW)
    assert buckets.reserve("h2", [level("x", fresh=False)], [1], now_us=NOW) == Unseeded((0,))
    assert buckets.reserve("h2", [level("x")], [2], now_us=NOW) == Reserved((Standing(0, 2),))
    buckets.settle("h1", [0], now_us=NOW)
    assert standing(buckets, level("x")) == Standing(0, 2)
    buckets.settle("h2", [2], now_us=NOW)
    assert standing(buckets, level("x")) == Standing(2, 0)


def test_buckets_that_were_given_may_change():
    """The engine keeps its own list of what a hold covers."""
    buckets, given, units = Buckets(), [counter()], [4]
    buckets.reserve("h1", given, units, now_us=NOW)
    given.clear()
    units[0] = 1
    buckets.settle("h1", [0], now_us=NOW)
    assert standing(buckets, counter()) == Standing()


# Forgetting


def test_a_counter_is_kept_for_a_while_after_its_cycle():
    """Late settlements and adjustments find their counter for two days; then it is forgotten, and the ledger would be asked."""
    buckets, bucket = Buckets(), counter(fresh=False)
    buckets.seed([Seed(bucket, 5, NOW)])
    assert buckets.forget(now_us=bucket.ends_us + KEPT_US, looks=9) == 0
    assert buckets.forget(now_us=bucket.ends_us + KEPT_US + 1, looks=9) == 1
    assert len(buckets) == 0
    assert standing(buckets, bucket) is None


def test_a_counter_without_an_end_is_kept():
    """What does not say when it ends is not forgotten."""
    buckets = Buckets()
    buckets.seed([Seed(counter(ends_us=0), 5, NOW)])
    assert buckets.forget(now_us=2 * NOW, looks=9) == 0


def test_a_level_is_forgotten_once_it_has_been_empty_for_a_while():
    """Ten minutes after the last of it leaked, nothing is lost with it."""
    buckets, bucket = Buckets(), level(taken=True)
    buckets.reserve("h1", [bucket], [60], now_us=NOW)
    buckets.settle("h1", (), now_us=NOW)
    assert buckets.forget(now_us=NOW + MINUTE_US + IDLE_US - 1, looks=9) == 0
    assert buckets.forget(now_us=NOW + MINUTE_US + IDLE_US, looks=9) == 1


def test_nothing_that_is_held_is_forgotten():
    """A request that runs for weeks still holds what it held."""
    buckets, several = Buckets(), [counter(), level(), gauge()]
    buckets.reserve("h1", several, [1, 1, 1], now_us=NOW)
    assert buckets.forget(now_us=NOW + 100 * DAY_US, looks=9) == 0
    assert [held for _, held in buckets.holds()[0].units] == [1, 1, 1]
    buckets.settle("h1", (), now_us=NOW + 100 * DAY_US)
    assert buckets.forget(now_us=NOW + 101 * DAY_US, looks=9) == 3


@pytest.mark.parametrize("made_again", [False, True])
def test_a_forgotten_bucket_comes_back_for_its_request(made_again):
    """A request that holds nothing of a bucket does not keep it; what it uses of it in the end is counted all the same."""
    buckets, several = Buckets(), [level(), gauge()]
    buckets.reserve("h1", several, [0, 0], now_us=NOW)
    later_us = NOW + 2 * IDLE_US
    buckets.forget(now_us=later_us, looks=9)
    assert len(buckets) == 0
    if made_again:
        buckets.reserve("h2", several, [5, 5], now_us=later_us)
    held = 5 if made_again else 0
    assert buckets.extend("h1", [1, 1], now_us=later_us) == Reserved((Standing(0, held + 1), Standing(0, held + 1)))
    buckets.settle("h1", [7, 0], now_us=later_us)
    assert buckets.standings(several, now_us=later_us) == [Standing(7, held), Standing(0, held)]
    assert len(buckets) == 2
    buckets.settle("h2", (), now_us=later_us)
    assert buckets.forget(now_us=later_us + DAY_US, looks=9) == 2


def test_one_off_seats_do_not_fill_the_memory(monkeypatch):
    """Of seats that come once, never more than twice what still matters is known, and no call looks at more than two for each that it makes."""
    buckets, looked, idle, now_us = Buckets(), [], engine._idle, NOW
    monkeypatch.setattr(engine, "_idle", lambda state, at_us: looked.append(at_us) or idle(state, at_us))
    count = 10_000
    for n in range(count):
        now_us += SECOND_US
        several = [level(f"l|{n}", taken=True), gauge(f"g|{n}"), counter(f"c|{n}", ends_us=now_us), counter("pooled", 10**9, ends_us=NOW * 2)]
        looked.clear()
        assert isinstance(buckets.reserve(f"h{n}", several, [1, 1, 1, 1], now_us=now_us), Reserved)
        buckets.settle(f"h{n}", [0, 0, 1, 1], now_us=now_us)
        assert len(looked) <= 8
        # The counters matter for two days, which is longer than this lasts; the levels for a minute and ten.
        assert len(buckets) <= 2 * (n + 1 + 602)
    assert standing(buckets, counter("pooled", 10**9)) == Standing(count, 0)
    buckets.forget(now_us=now_us + 3 * DAY_US, looks=len(buckets))
    assert list(buckets._states) == list(buckets._turns) == ["pooled"]


def test_memory_follows_what_is_in_use():
    """With seats that come once and are idle after ten minutes, never much more than twice those of ten minutes are known."""
    buckets, now_us, most = Buckets(), NOW, 0
    for n in range(20_000):
        now_us += SECOND_US
        buckets.reserve(f"h{n}", [level(f"l|{n}", taken=True)], [1], now_us=now_us)
        buckets.settle(f"h{n}", (), now_us=now_us)
        most = max(most, len(buckets))
    assert most <= 2 * 602


def test_charge_ids_are_not_kept_for_ever():
    """A counter remembers the later half of its charge ids at least, so a yearly one does not grow with every adjustment."""
    buckets, bucket = Buckets(), counter(room=10**9)
    buckets.reserve("h1", [bucket], [0], now_us=NOW)
    count = CHARGES_KEPT + 10
    for n in range(count):
        buckets.charge(f"adj{n}", [(bucket, 1)])
    for n in range(count - CHARGES_KEPT // 2, count):
        buckets.charge(f"adj{n}", [(bucket, 1)])
    assert standing(buckets, bucket) == Standing(count, 0)
    assert len(buckets._states["counter"].charges) <= CHARGES_KEPT


# Being told


def test_who_is_told_may_ask_at_once():
    """Whoever is told of room finds the settlement done, all of it, and may take the room from within the call."""
    buckets, several = Buckets(), [counter("a", 1), gauge("b", 1)]
    answers = []

    def take(bucket_id):
        answers.append((bucket_id, buckets.reserve(f"next-{bucket_id}", several, [1, 1], now_us=NOW)))

    buckets.reserve("h1", several, [1, 1], now_us=NOW)
    buckets.when_room(take)
    buckets.settle("h1", (), now_us=NOW)
    assert answers[0] == ("a", Reserved((Standing(0, 1), Standing(0, 1))))
    assert answers[1] == ("b", Refused((Shortage(0, Standing(0, 1), 0), Shortage(1, Standing(0, 1), 0))))


def test_all_who_asked_are_told_and_only_of_what_was_given_back():
    """Each callback hears of each bucket that was held or corrected downward; what was only used frees nothing."""
    buckets, first, second = Buckets(), [], []
    buckets.when_room(first.append)
    buckets.when_room(second.append)
    several = [counter("a"), level("b"), gauge("c"), counter("d", taken=True), counter("e", taken=True), counter("f")]
    buckets.reserve("h1", several, [1, 1, 1, 1, 1, 0], now_us=NOW)
    assert first == []
    buckets.settle("h1", [1, 1, 0, 0, -1, 5], also=[(counter("g"), 2), (counter("h"), -1)], now_us=NOW)
    assert first == second == ["a", "b", "c", "e", "h"]
    buckets.charge("adj1", [(counter("a"), 1), (counter("f"), -1)])
    buckets.charge("adj1", [(counter("f"), -1)])
    assert first == ["a", "b", "c", "e", "h", "f"]


def test_no_room_at_all():
    """A limit of nothing admits nothing, and says that waiting does not help."""
    for bucket in (counter(room=0), level(room=0, refill=0), gauge(room=0)):
        refused = Buckets().reserve("h1", [bucket], [1], now_us=NOW)
        assert refused == Refused((Shortage(0, Standing(), NEVER),))


def test_only_the_owner_has_holds():
    """The engine's holds are those of its process; another owner has none here."""
    buckets = Buckets("w1")
    buckets.reserve("h1", [gauge()], [1], now_us=NOW)
    assert len(buckets.holds("w1")) == len(buckets.holds()) == 1
    assert buckets.holds("w2") == []
