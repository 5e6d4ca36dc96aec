"""Use as the books say it: equal to a plain sum over attempts, wherever each of them stands between journal and ledger."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event

from bookings import WRITER, StoppedClock, intent, settlement
from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.ledger.adjustments import Truth, correct, standing
from tokenweir.ledger.entries import Entry, settled_entry, unknown_entry
from tokenweir.limits.book import LimitBook, Link
from tokenweir.limits.cycle import bounds
from tokenweir.limits.demand import units_of
from tokenweir.limits.limit import Cycle, Grant, Limit, Resource, Rolling, Scope, covers
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import encode_frame
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.seeding import OVERLAP_US, AdjustmentFeed, LedgerUse, use_of
from tokenweir.periods import DAY_US, QUARTER_US, parse_instant
from tokenweir.policies import Policy
from tokenweir.ports import KeyRecord
from tokenweir.settings import JournalSettings, Settings
from tokenweir.storage import use_sums
from tokenweir.storage.ledger import SqlLedger
from tokenweir.usage import Usage
from tokenweir.workers.bookkeeping import Bookkeeper

NOW_US = parse_instant("2026-11-22T13:37:11")
MODELS = ("claude-opus-4-5", "claude-opus-4-5-20251101", "claude-haiku-4-5", "no-such-model")
OWNERS = {f"key_{n}": ("ann", "bob", "")[n % 3] for n in range(6)}
TAGS = {f"key_{n}": (("red",), ("red", "blue"), ())[n % 3] for n in range(6)}
MINUTE_US = 60_000_000
SMALL = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536)


class Keys:
    """A directory with six keys in three teams of one organization, one of them revoked."""

    def keys(self) -> list[KeyRecord]:
        return [
            KeyRecord(key, "org_1", "Org", f"team_{n % 3}", "Team", key, OWNERS[key], TAGS[key], Policy(), 0, 5 if n == 4 else None)
            for n, key in enumerate(OWNERS)
        ]


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    with settings_for(request.param, tmp_path / "data") as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        yield ledger


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return app.open_rate_card(Settings(data_dir=tmp_path_factory.mktemp("card")))


def reader(store: SqlLedger, journal: Path, card, now_us: int = NOW_US) -> LedgerUse:
    return LedgerUse(store, Keys(), journal, card, StoppedClock(now_us))


def limit(number: int, resource: Resource, window: Cycle | Rolling, models: tuple[str, ...] = (), **scope: str) -> Limit:
    return Limit(f"lim_{number}", f"limit {number}", Scope("org_1", **scope), resource, 1_000, window, models=models)


def link(made: Limit, seat: str = "", now_us: int = NOW_US) -> Link:
    book = LimitBook(canonical=lambda _: None, complete_since_us=None)
    book.update([(made, ())])
    return book.link(made, seat, now_us=now_us)


def random_attempt(chance: random.Random, number: int, *, since_us: int = NOW_US - 40 * DAY_US) -> tuple:
    at_us = chance.randrange(since_us, NOW_US)
    key = chance.randrange(6)
    begun = intent(
        number,
        at_us=at_us,
        team_id=f"team_{key % 3}",
        key_id=f"key_{key}",
        model_requested=chance.choice(MODELS),
        session_id=chance.choice(("", "s1", "s2")),
        ceiling=Usage(chance.randrange(5000), output=chance.randrange(5000)),
        ceiling_nanos=chance.randrange(10**9),
    )
    used = Usage(*(chance.randrange(1000) for _ in range(5)))
    ended = settlement(
        begun, usage=used, cost_nanos=chance.randrange(10**9), ended_at_us=at_us + chance.randrange(60_000_000), model=chance.choice(MODELS)
    )
    return begun, ended


LIMITS = [
    limit(0, Resource.TOKENS, Cycle("month")),
    limit(1, Resource.SPEND, Cycle("day", "Asia/Kathmandu"), team_id="team_1"),
    limit(2, Resource.REQUESTS, Cycle("week", "America/New_York"), key_id="key_2"),
    limit(3, Resource.INPUT_TOKENS, Cycle("month"), ("claude-opus-*",)),
    limit(4, Resource.OUTPUT_TOKENS, Cycle("quarter", "Europe/Berlin", "02-01"), user="ann"),
    limit(5, Resource.SPEND, Cycle("month"), tag="red"),
    limit(6, Resource.TOKENS, Cycle("month"), per="user"),
    limit(7, Resource.TOKENS, Cycle("month"), per="key"),
    limit(8, Resource.TOKENS, Cycle("month"), ("claude-opus-4-5",), per="team"),
    limit(9, Resource.TOKENS, Cycle("week"), per="session"),
    limit(10, Resource.SPEND, Cycle("month"), session="s2", team_id="team_2"),
]
SEATS = {6: ["ann", "bob", "key_2", "nobody"], 7: [f"key_{n}" for n in range(6)], 8: ["team_0", "team_1"], 9: ["s1", "s2", "key_1", "s3"]}


def all_links() -> list[Link]:
    return [link(made, seat) for n, made in enumerate(LIMITS) for seat in SEATS.get(n, [""])]


def counts(made: Limit, seat: str, entry: Entry, card) -> bool:
    """What `LedgerUse` must agree with, told one entry at a time."""
    scope, owner, tags = made.scope, OWNERS[entry.key_id], TAGS[entry.key_id]
    seats = {"": "", "team": entry.team_id, "key": entry.key_id, "user": owner or entry.key_id, "session": entry.session_id or entry.key_id}
    return (
        scope.team_id in ("", entry.team_id)
        and scope.key_id in ("", entry.key_id)
        and scope.user in ("", owner)
        and scope.session in ("", entry.session_id)
        and (not scope.tag or scope.tag in tags)
        and covers(made, entry.model, card.resolve(entry.model) or entry.model)
        and seats[scope.per] == seat
    )


def plainly(entries: list[Entry], met: Link, card) -> int:
    since_us, until_us = bounds(met.limit.window, NOW_US)
    return sum(
        units_of(met.limit.resource, entry.usage, entry.cost_nanos, attempts=int(entry.kind == "attempt"))
        for entry in entries
        if since_us <= entry.started_at_us < until_us and counts(met.limit, met.seat, entry, card)
    )


@pytest.mark.parametrize("seed", range(4))
def test_counters_are_a_plain_sum_wherever_attempts_stand(store, tmp_path, card, seed):
    """Booked, settled in the journal of a living or a dead writer, open in either: each attempt counts once, as it will be booked."""
    chance = random.Random(seed)
    folder = tmp_path / "journal"
    expected: list[Entry] = []
    journals = [JournalWriter(folder, SMALL, writer=f"{n:032x}") for n in (1, 2)]
    attempts = [random_attempt(chance, n) for n in range(400)]
    books = Bookkeeper(folder, store, batch_entries_max=1000, clock=StoppedClock(NOW_US))
    for n, (begun, ended) in enumerate(attempts):
        journal, fate = journals[n % 2], chance.random()
        journal.append_intent(begun)
        if fate < 0.9:
            journal.append_settlement(ended)
            expected.append(settled_entry(begun, ended))
        elif n % 2:
            expected.append(unknown_entry(begun, now_us=NOW_US))
        if n == 250:
            books.step()
    books.close()
    journals[1].close()
    with closing(journals[0]):
        use = reader(store, folder, card)
        links = all_links()
        for _ in range(2):  # the second time it reads on where it stopped
            seeds = use.seeds(links)
            assert [seed.bucket for seed in seeds] == [met.bucket for met in links]
            assert {f"{met.bucket.bucket_id}": seed.used for met, seed in zip(links, seeds, strict=True)} == {
                met.bucket.bucket_id: plainly(expected, met, card) for met in links
            }
        assert any(seed.used for seed in seeds)


def at(minutes: float) -> int:
    """So many minutes before now."""
    return NOW_US - round(minutes * MINUTE_US)


def booked(store: SqlLedger, number: int, at_us: int, *, lasts_us: int = 0, **fields: Any) -> Entry:
    begun = intent(number, at_us=at_us, team_id="team_1", key_id="key_1", model_requested=MODELS[0])
    made = settled_entry(begun, settlement(begun, ended_at_us=at_us + lasts_us, **fields))
    store.book([made])
    return made


def level(resource: Resource, amount: int, period_us: int) -> Link:
    return link(Limit("lim_r", "rate", Scope("org_1"), resource, amount, Rolling(period_us)))


def test_a_short_level_leaks_from_the_end_of_each_attempt(store, tmp_path, card):
    """60 units a minute: what ended half a minute ago is half gone, and what ended before a pause that long is gone."""
    use = reader(store, tmp_path, card)
    met = level(Resource.OUTPUT_TOKENS, 60, MINUTE_US)
    booked(store, 1, at(3), usage=Usage(output=40))
    assert use.seeds([met])[0].used == 0
    booked(store, 2, at(2), lasts_us=round(1.5 * MINUTE_US), usage=Usage(output=50))
    assert use.seeds([met])[0].used == 20
    booked(store, 3, at(0.25), usage=Usage(output=5))
    assert use.seeds([met])[0].used == 25
    requests = level(Resource.REQUESTS, 2, MINUTE_US)
    assert use.seeds([requests])[0].used == 1, "a request is used when it begins: a quarter of a minute ago, which leaves half of it, rounded up"


def test_a_level_that_was_never_empty_is_worked_out_from_before_its_period(store, tmp_path, card):
    """Three minutes of steady overuse are not forgotten after one."""
    for n in range(12):
        booked(store, n, at(3 - n / 4), usage=Usage(output=20))
    # 80 units a minute against 60 that leak: each quarter leaves 5, and the last 20 leaked for a quarter.
    assert reader(store, tmp_path, card).seeds([level(Resource.OUTPUT_TOKENS, 60, MINUTE_US)])[0].used == 12 * 5


def test_a_long_level_is_worked_out_from_cells_at_their_end(store, tmp_path, card):
    """Late rather than early: never less than an exact count, and by no more than what leaks in a cell."""
    chance = random.Random(3)
    for hours, cell_us in ((5, QUARTER_US), (24, QUARTER_US), (24 * 7, DAY_US)):
        period_us, folder = hours * 60 * MINUTE_US, tmp_path / str(hours)
        with settings_for("sqlite", folder) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
            met, exact_num, last_us = level(Resource.OUTPUT_TOKENS, 10_000, period_us), 0, 0
            entries = sorted((chance.randrange(NOW_US - period_us, NOW_US), chance.randrange(1, 400)) for _ in range(40))
            for n, (at_us, output) in enumerate(entries):
                booked(ledger, n, at_us, usage=Usage(output=output))
                exact_num = max(0, exact_num - 10_000 * (at_us - last_us)) + output * period_us
                last_us = at_us
            exact = max(0, exact_num - 10_000 * (NOW_US - last_us)) / period_us
            used = reader(ledger, folder, card).seeds([met])[0].used
            assert exact <= used <= exact + 10_000 * cell_us / period_us + 1, hours


def test_a_level_counts_what_is_not_booked_yet(store, tmp_path, card):
    """Short or long, the journal's attempts are in it."""
    begun = intent(1, at_us=at(1), key_id="key_1")
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        journal.append_intent(begun)
        journal.append_settlement(settlement(begun, usage=Usage(output=50), ended_at_us=NOW_US))
        for period_us in (MINUTE_US, DAY_US):
            assert reader(store, tmp_path, card).seeds([level(Resource.OUTPUT_TOKENS, 60, period_us)])[0].used == 50


def test_a_writer_whose_lock_the_worker_holds_is_dead_to_the_only_one_that_lives(store, tmp_path, card):
    """While the worker buries a writer, somebody holds its lock; a process that counts alone knows better than to believe that it lives."""
    folder = tmp_path / "journal"
    journal = JournalWriter(folder, SMALL, writer=WRITER)
    journal.append_intent(intent(1, at_us=at(1), ceiling_nanos=77))
    journal.close()
    lock = files.take_lock(files.lock_path(folder, WRITER))
    assert lock is not None
    met = link(limit(0, Resource.SPEND, Cycle("month")))
    try:
        for alone_as, used in (("", 0), ("f" * 32, 77), (WRITER, 0)):
            use = LedgerUse(store, Keys(), folder, card, StoppedClock(NOW_US), alone_as=alone_as)
            assert use.seeds([met])[0].used == used
    finally:
        os.close(lock)


def test_damage_and_vanished_files_do_not_stop_it(store, tmp_path, card):
    """Reading goes on behind damage; a journal directory that is not there is empty; nothing is written or deleted."""
    records = [
        intent(1, at_us=at(3)),
        settlement(intent(1, at_us=at(3)), cost_nanos=5),
        intent(2, at_us=at(2)),
        settlement(intent(2, at_us=at(2)), cost_nanos=7),
    ]
    frames = [encode_frame(record) for record in records]
    folder = tmp_path / "journal"
    folder.mkdir()
    met = link(limit(0, Resource.SPEND, Cycle("month")))
    assert reader(store, tmp_path / "nowhere", card).seeds([met])[0].used == 0
    files.segment_path(folder, WRITER, 1).write_bytes(frames[0] + frames[1] + b"\x07" * 40 + frames[2] + frames[3])
    files.segment_path(folder, WRITER, 2).write_bytes(frames[0][:-3])
    before = sorted(path.name for path in folder.iterdir() if path.suffix == ".seg")
    use = reader(store, folder, card)
    assert use.seeds([met])[0].used == 12
    files.segment_path(folder, WRITER, 1).unlink()
    assert use.seeds([met])[0].used == 12, "what vanished is in the ledger, or it was read before"
    assert sorted(path.name for path in folder.iterdir()) == [before[1]]


@pytest.mark.parametrize("seed", range(3))
def test_seeds_are_right_while_a_worker_books_and_deletes(tmp_path, card, seed):
    """Asked again and again beside a gateway that writes and a worker that books: never less than what was settled before, never more than by now."""
    with settings_for("sqlite", tmp_path / "data") as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        folder, chance = tmp_path / "journal", random.Random(seed)
        journal = JournalWriter(folder, SMALL, writer=WRITER)
        use, met = reader(ledger, folder, card), link(limit(0, Resource.SPEND, Cycle("month")))
        books = Bookkeeper(folder, ledger, batch_entries_max=20, clock=StoppedClock(NOW_US))
        settled, waiting, done = [0], [], threading.Event()

        def write() -> None:
            for n in range(1500):
                begun = intent(n, at_us=at(1) + n, ceiling_nanos=10**9)
                journal.append_intent(begun)
                waiting.append(begun)
                while waiting and chance.random() < 0.55:
                    settled[0] += 3
                    journal.append_settlement(settlement(waiting.pop(chance.randrange(len(waiting))), cost_nanos=3))
            done.set()

        def book() -> None:
            while not done.is_set() or not books.settled_up:
                books.step()

        threads = [threading.Thread(target=work) for work in (write, book)]
        for thread in threads:
            thread.start()
        while threads[1].is_alive():
            before = settled[0]
            used = use.seeds([met])[0].used
            assert before - 3 <= used <= settled[0] + 3, "the counts move a moment before and after the record itself"
        for thread in threads:
            thread.join()
        assert use.seeds([met])[0].used == settled[0]
        journal.close()
        assert reader(ledger, folder, card).seeds([met])[0].used == settled[0] + 10**9 * len(waiting)
        books.close()


def adjust(store: SqlLedger, entry: Entry, cost_nanos: int, now_us: int, **changes: Any) -> list[Entry]:
    truth = Truth(entry.usage, cost_nanos, changes.get("model", entry.model), entry.certainty, (), "test", service_tier=entry.service_tier)
    made = correct(standing(store.entries_of(entry.attempt_id)), truth, reason="operator: test", now_us=now_us)
    assert store.book(made) == len(made)
    return list(made)


def test_a_correction_is_told_once_and_never_lost(store, tmp_path, card):
    """Until it was heard it is told again; then no more. What is in a seed already names it as included."""
    clock = StoppedClock(NOW_US)
    feed = AdjustmentFeed(store, clock)
    use = LedgerUse(store, Keys(), tmp_path, card, clock, feed=feed)
    met = [
        link(limit(0, Resource.SPEND, Cycle("month"))),
        link(limit(1, Resource.SPEND, Cycle("day"))),
        link(limit(2, Resource.SPEND, Cycle("month"), key_id="key_5")),
    ]
    entry = booked(store, 1, NOW_US - 3 * DAY_US, cost_nanos=100)
    assert feed.news() == []
    (made,) = adjust(store, entry, 130, NOW_US)
    for _ in range(2):
        assert feed.news() == [use_of(made)]
    seeds = use.seeds(met)
    assert [(seed.used, seed.included) for seed in seeds] == [(130, (made.entry_id,)), (0, ()), (0, ())]
    feed.heard(use_of(made))
    assert feed.news() == []
    clock.now += OVERLAP_US - 1
    late = adjust(store, entry, 150, NOW_US + 1)
    assert feed.news() == [use_of(one) for one in late], "it became visible minutes after the moment it states"
    assert set(use.seeds(met)[0].included) == {made.entry_id, late[0].entry_id}


def test_a_correction_that_was_not_heard_for_long_is_told_and_included_still(store, tmp_path, card):
    """A gateway that could not follow for an hour misses nothing, and charges nothing twice that a seed of now holds."""
    clock = StoppedClock(NOW_US)
    feed = AdjustmentFeed(store, clock)
    use = LedgerUse(store, Keys(), tmp_path, card, clock, feed=feed)
    entry = booked(store, 1, NOW_US - 60 * MINUTE_US, cost_nanos=100)
    made = adjust(store, entry, 130, NOW_US)
    clock.now += 70 * MINUTE_US
    assert use.seeds([link(limit(0, Resource.SPEND, Cycle("month")))])[0].included == (made[0].entry_id,)
    assert feed.news() == [use_of(made[0])]


def test_a_correction_that_moves_an_attempt_moves_its_request(store, tmp_path, card):
    """Another model: one request less where it was booked, one more where it belongs; the sums of entries say the same as the rollups."""
    opus, haiku = (link(limit(n, Resource.REQUESTS, Cycle("month"), (models,))) for n, models in enumerate(("claude-opus-*", "claude-haiku-*")))
    entry = booked(store, 1, at(5))
    made = adjust(store, entry, 7, NOW_US, model="claude-haiku-4-5")
    assert [use_of(one).sums.requests for one in made] == [-1, 1]
    with store.snapshot() as snapshot:
        assert sorted(snapshot.adjustments(NOW_US), key=lambda use: use.sums.requests) == [use_of(one) for one in made]
    assert [seed.used for seed in reader(store, tmp_path, card).seeds([opus, haiku])] == [0, 1]
    sessions = link(limit(3, Resource.REQUESTS, Cycle("month"), per="session"), "key_1")
    assert reader(store, tmp_path, card).seeds([sessions])[0].used == 1


def test_what_others_told_of_is_not_counted(store, tmp_path, card):
    """Calls that the gateway did not carry are in the ledger and in no limit."""
    told = msgspec.structs.replace(booked(store, 1, at(9), cost_nanos=5), entry_id="f" * 32, attempt_id="f" * 32, source="claude_code_log", dedup_key="x", message_id="m", request_id="r", upstream_request_id="")  # fmt: skip
    store.book_told([told], now_us=NOW_US)
    assert len(store.page()) == 2
    links = [
        link(limit(0, Resource.SPEND, Cycle("month"))),
        link(limit(1, Resource.SPEND, Cycle("month"), per="session"), "key_1"),
        level(Resource.SPEND, 100, DAY_US),
    ]
    assert [seed.used for seed in reader(store, tmp_path, card).seeds(links)] == [5, 5, 5]


def test_the_room_of_a_limit_with_credits_follows_from_the_ledger(store, tmp_path, card):
    """What was used beyond the amount last month burned the credit, as far as it was; what is not booked yet counts too."""
    made = msgspec.structs.replace(limit(0, Resource.SPEND, Cycle("month")), amount=100)
    given = Grant("g", "lim_0", "credit", 50, parse_instant("2026-10-01"), created_at_us=1)
    booked(store, 1, parse_instant("2026-10-10"), cost_nanos=110)
    begun = intent(2, at_us=parse_instant("2026-10-31T23:59"), key_id="key_1")
    with closing(JournalWriter(tmp_path / "journal", SMALL, writer=WRITER)) as journal:
        journal.append_intent(begun)
        journal.append_settlement(settlement(begun, cost_nanos=15))
        use = reader(store, tmp_path / "journal", card)
        met = link(made)
        allowance = use.allowance(met, [given])
        assert (allowance.room, [line.units for line in allowance.lines]) == (100 + 25, [100, 25])
        booked(store, 3, at(1), cost_nanos=104)
        assert use.allowance(met, [given]).room == 125
        assert [(balance.left, balance.burned) for balance in use.balances(made, "", [given])] == [(21, 4)]
        assert use.used(made, "", parse_instant("2026-10-01"), NOW_US + 1) == 110 + 15 + 104
        assert use.balances(msgspec.structs.replace(made, window=None), "", []) == ()


def plan(store: SqlLedger, ask: Callable[[Any], Any]) -> list[str]:
    """How SQLite goes about what is asked of a snapshot: the plans of all queries."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(store._engine, "before_cursor_execute", note)
    with store.snapshot() as snapshot:
        ask(snapshot)
    event.remove(store._engine, "before_cursor_execute", note)
    with store._engine.connect() as connection:
        return [
            str(row[3])
            for statement, parameters in asked
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


def test_asking_for_corrections_and_for_one_key_is_a_look_at_an_index(tmp_path):
    """What is asked every second, and what is asked when a key comes back, does not grow with the ledger."""
    with settings_for("sqlite", tmp_path) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        assert plan(ledger, lambda snapshot: snapshot.adjustments(NOW_US)) == ["SEARCH entries USING INDEX entries_corrected (ended_at_us>?)"]
        (dims,) = plan(ledger, lambda snapshot: list(snapshot.dims({"source": ("gateway",), "key_id": ("key_1",)})))
        assert "USING INDEX dims_key" in dims
        (cells, *_) = plan(ledger, lambda snapshot: list(snapshot.sums_of([("day", 0, 30 * DAY_US)], [1, 2, 3])))
        assert "SEARCH rollup_day USING PRIMARY KEY (bucket_us=? AND dims_id=?)" in cells
        (attempts,) = plan(ledger, lambda _: ledger.attempts_of(["req_1"]))
        assert "USING INDEX entries_by_request_id" in attempts


def test_all_limits_that_began_together_are_one_question(store, tmp_path, card):
    """A thousand keys with two limits each, one more on all of them: each cell of the cycle is read once, and few keys are sought one by one."""
    calls: list[tuple[int, bool]] = []
    for n in range(50):
        begun = intent(n, at_us=at(n), key_id=f"key_{n}", team_id="team_1")
        store.book([settled_entry(begun, settlement(begun, cost_nanos=n, usage=Usage(output=1)))])
    links = [
        link(Limit(f"{resource}_{n}", "x", Scope("org_1", key_id=f"key_{n}"), resource, 10, Cycle("month")))
        for n in range(1000)
        for resource in (Resource.SPEND, Resource.OUTPUT_TOKENS)
    ]
    links.append(link(limit(0, Resource.OUTPUT_TOKENS, Cycle("month"))))
    links.append(link(limit(1, Resource.OUTPUT_TOKENS, Cycle("quarter"))))
    original = use_sums.sums_of

    def counting(connection, rollups, spans, dims_ids, *, buckets):
        calls.append((len(dims_ids), buckets))
        return original(connection, rollups, spans, dims_ids, buckets=buckets)

    use_sums.sums_of = counting
    try:
        seeds = reader(store, tmp_path, card).seeds(links)
    finally:
        use_sums.sums_of = original
    assert [seed.used for seed in seeds[:100]] == [used for n in range(50) for used in (n, 1)]
    assert [seed.used for seed in seeds[100:]] == [0] * 1900 + [50, 50]
    assert calls == [(50, False)] * 2, "one question for each start of a cycle"


def test_a_session_is_summed_by_itself_and_once(store, tmp_path, card):
    """Limits of sessions beside pooled ones: both are right, in counters and in levels."""
    for n, session in enumerate(("a", "a", "b", "")):
        begun = intent(n, at_us=at(n + 1), key_id="key_1", session_id=session)
        store.book([settled_entry(begun, settlement(begun, usage=Usage(output=1000)))])
    by_session = limit(0, Resource.OUTPUT_TOKENS, Cycle("month"), per="session")
    rolling = limit(1, Resource.OUTPUT_TOKENS, Rolling(366 * DAY_US), per="session")
    pooled = limit(2, Resource.OUTPUT_TOKENS, Cycle("month"))
    links = [link(by_session, "a"), link(pooled), link(by_session, "b"), link(by_session, "key_1"), link(by_session, "c"), link(rolling, "a")]
    assert [seed.used for seed in reader(store, tmp_path, card).seeds(links)] == [2000, 4000, 1000, 1000, 0, 2000]
