"""What a dead gateway held ends as the ledger says, whatever it was doing when it died: counters equal the ledger, nothing stays held."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bookings import attempt_id, intent, settlement
from databases import settings_for
from tokenweir import app
from tokenweir.ledger.entries import Entry
from tokenweir.limit_ports import LimitRecord
from tokenweir.limits.book import LimitBook, Link
from tokenweir.limits.bucket import Reserved, Standing
from tokenweir.limits.demand import demand_of, units_of
from tokenweir.limits.limit import Cycle, Limit, Resource, Rolling, Scope
from tokenweir.metering import journal_files as files
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.seeding import LedgerUse
from tokenweir.policies import Policy
from tokenweir.ports import KeyRecord
from tokenweir.principals import Principal
from tokenweir.settings import JournalSettings
from tokenweir.storage.ledger import SqlLedger
from tokenweir.storage.limit_valkey import ValkeyLimitStore
from tokenweir.usage import Usage
from tokenweir.workers.bookkeeping import Bookkeeper
from tokenweir.workers.limit_recovery import RETRY_US, LimitRecovery
from valkeys import limit_settings, needs_valkey, own_server, shared_server

pytestmark = needs_valkey
SMALL = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536)
WHO = Principal("org_1", "team_1", "key_1", "Org", "Team", "key", owner="ann", tags=("red",))
MODEL, OTHER = "claude-opus-4-5", "claude-haiku-4-5"
CLOCK = app.SystemClock()
CEILING = Usage(uncached_input=1_000, output=4_000)
EXACT = Usage(100, 20, 30, 400, 50)
YEAR_US = 366 * 86_400_000_000


def limit(name: str, resource: Resource, window: Cycle | Rolling | None = Cycle("month"), models: tuple[str, ...] = (), **scope: str) -> Limit:  # noqa: B008
    return Limit(name, name, Scope("org_1", **scope), resource, 10**6 if isinstance(window, Rolling) else 10**12, window, models=models)


LIMITS = [
    limit("spend", Resource.SPEND),
    limit("requests", Resource.REQUESTS, key_id="key_1"),
    limit("tokens", Resource.TOKENS, Cycle("year"), user="ann"),
    limit("opus", Resource.OUTPUT_TOKENS, Cycle("day"), ("claude-opus-*",), per="key"),
    limit("haiku", Resource.OUTPUT_TOKENS, Cycle("day"), ("claude-haiku-*",), tag="red"),
    limit("rate", Resource.TOKENS, Rolling(YEAR_US)),  # leaks so slowly that no test can notice
    limit("at_once", Resource.CONCURRENCY, None),
]


class Registry:
    """A directory with one key, and the limits."""

    def keys(self) -> list[KeyRecord]:
        return [KeyRecord("key_1", "org_1", "Org", "team_1", "Team", "key", WHO.owner, WHO.tags, Policy(), 0)]

    def limits(self) -> list[LimitRecord]:
        return [LimitRecord(made, "Org") for made in LIMITS]


class Gateway:
    """As much of a gateway as counts: its journal, its holds, its book. `die` leaves everything as it is."""

    def __init__(self, town: Town, number: int) -> None:
        self.writer = f"{number:032x}"
        self.journal = JournalWriter(town.folder, SMALL, writer=self.writer)
        self.store = town.open_store(self.writer)
        self.book = LimitBook(canonical=town.card.resolve, complete_since_us=0)  # a store without anything in it is right: nothing was used
        self.book.update([(made, ()) for made in LIMITS])
        self.links: dict[str, tuple[Link, ...]] = {}

    async def reserve(self, request: int) -> None:
        chain = self.book.chain(WHO, MODEL, session="", now_us=CLOCK.now_us())
        units = [demand_of(link.limit.resource, CEILING, 10_000) for link in chain.links]
        assert isinstance(await self.store.reserve(f"req_tw_{request}", chain.buckets, units, now_us=CLOCK.now_us()), Reserved)
        self.links[f"req_tw_{request}"] = chain.links

    def begin(self, request: int, attempt: int = 1):
        now_us = CLOCK.now_us()
        begun = intent(
            request,
            attempt_id=attempt_id(request * 10 + attempt, now_us),
            attempt_no=attempt,
            at_us=now_us,
            team_id="team_1",
            key_id="key_1",
            ceiling=CEILING,
            ceiling_nanos=10_000,
            model_requested=MODEL,
        )
        self.journal.append_intent(begun)
        return begun

    def end(self, begun, **fields) -> Entry:
        ended = settlement(begun, **({"usage": EXACT, "cost_nanos": 777} | fields))
        self.journal.append_settlement(ended)
        return ended

    def settle(self, request: int, ended) -> None:
        links = self.links[f"req_tw_{request}"]
        used = [0 if link.limit.resource is Resource.REQUESTS else units_of(link.limit.resource, ended.usage, ended.cost_nanos) for link in links]
        self.store.settle(f"req_tw_{request}", used, now_us=CLOCK.now_us())

    async def die(self) -> None:
        self.journal.close()
        await self.store.close()


class Town:
    """A ledger, a journal directory, a shared store, and a worker."""

    def __init__(self, folder: Path, ledger: SqlLedger, settings, card) -> None:
        self.folder = folder
        self.ledger = ledger
        self.settings = settings
        self.card = card
        folder.mkdir(exist_ok=True)

    def open_store(self, owner: str) -> ValkeyLimitStore:
        return ValkeyLimitStore(self.settings, owner=owner)

    def recovery(self, clock=CLOCK) -> LimitRecovery:
        return LimitRecovery(
            open_store=self.open_store,
            ledger=self.ledger,
            directory=Registry(),
            limits=Registry(),
            card=self.card,
            clock=clock,  # type: ignore[arg-type]
        )

    async def work(self, recovery: LimitRecovery | None = None) -> None:
        """A worker books all there is and lays to rest whom it can."""
        lay_to_rest = (recovery or self.recovery()).end_holds

        def book() -> None:
            with closing(Bookkeeper(self.folder, self.ledger, batch_entries_max=100, clock=CLOCK, lay_to_rest=lay_to_rest)) as books:
                for _ in range(3):
                    books.step()

        await asyncio.to_thread(book)

    async def stands(self) -> dict[str, Standing]:
        """How each limit stands in the store."""
        store, links = self.open_store("looker"), self.links()
        try:
            found = await store.standings([link.bucket for link in links], now_us=CLOCK.now_us())
        finally:
            await store.close()
        return {link.limit.limit_id: standing or Standing() for link, standing in zip(links, found, strict=True)}

    def links(self) -> Sequence[Link]:
        book = LimitBook(canonical=self.card.resolve, complete_since_us=None)
        book.update([(made, ()) for made in LIMITS])
        now_us = CLOCK.now_us()
        return [book.link(made, "key_1" if made.scope.per else "", now_us=now_us) for made in LIMITS]

    async def agrees(self) -> dict[str, int]:
        """Nothing is held, and every counter says what the ledger says; returns that."""
        stands = await self.stands()
        assert {name: standing.held for name, standing in stands.items()} == dict.fromkeys(stands, 0)
        links = [link for link in self.links() if link.limit.window is not None]
        use = LedgerUse(self.ledger, Registry(), self.folder, self.card, CLOCK)
        seeds = await asyncio.to_thread(use.seeds, links)
        said = {link.limit.limit_id: seed.used for link, seed in zip(links, seeds, strict=True)}
        assert {name: standing.used for name, standing in stands.items() if name in said} == said
        return said


@pytest.fixture
async def town(tmp_path) -> AsyncIterator[Town]:
    with settings_for("sqlite", tmp_path / "data") as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        yield Town(tmp_path / "journal", ledger, limit_settings(shared_server(), store_timeout_ms=5_000), app.open_rate_card(chosen))


async def test_killed_before_the_intent_it_has_used_nothing(town):
    """Of a request that was admitted and never sent, everything is given back, the request itself too."""
    gateway = Gateway(town, 1)
    await gateway.reserve(1)
    assert (await town.stands())["requests"].used == 1
    await gateway.die()
    await town.work()
    assert set((await town.agrees()).values()) == {0}
    assert list(town.folder.iterdir()) == []


async def test_killed_before_the_settlement_it_has_used_its_ceiling(town):
    """An attempt whose end nobody knows counts as it is booked: at its ceiling."""
    gateway = Gateway(town, 1)
    await gateway.reserve(1)
    gateway.begin(1)
    await gateway.die()
    await town.work()
    assert await town.agrees() == {"spend": 10_000, "requests": 1, "tokens": 5_000, "opus": 4_000, "haiku": 0, "rate": 5_000}


async def test_killed_before_it_told_the_store_it_has_used_what_it_journaled(town):
    """What was settled in the journal counts exactly, although the store never heard of it."""
    gateway = Gateway(town, 1)
    await gateway.reserve(1)
    gateway.end(gateway.begin(1))
    await gateway.die()
    await town.work()
    assert await town.agrees() == {"spend": 777, "requests": 1, "tokens": 600, "opus": 50, "haiku": 0, "rate": 600}


async def test_killed_after_it_told_the_store_nothing_is_counted_again(town):
    """A hold ends once."""
    gateway = Gateway(town, 1)
    await gateway.reserve(1)
    gateway.settle(1, gateway.end(gateway.begin(1)))
    await gateway.store.settled()
    await gateway.die()
    await town.work()
    assert (await town.agrees())["spend"] == 777


async def test_all_attempts_of_a_request_count_and_each_for_the_model_that_answered(town):
    """A first attempt that another model answered is charged to that model's limit, which the request had not asked; the second is unknown."""
    gateway = Gateway(town, 1)
    await gateway.reserve(1)
    await gateway.reserve(2)
    gateway.settle(2, gateway.end(gateway.begin(2)))
    other = Gateway(town, 2)  # whose use of the other limit makes it known to the store
    chain = other.book.chain(WHO, OTHER, session="", now_us=CLOCK.now_us())
    await other.store.reserve("req_tw_9", chain.buckets, [1] * len(chain.buckets), now_us=CLOCK.now_us())
    gateway.end(gateway.begin(1, 1), model=OTHER)
    gateway.begin(1, 2)
    await gateway.die()
    await other.die()
    await town.work()
    said = await town.agrees()
    assert said == {"spend": 10_000 + 2 * 777, "requests": 3, "tokens": 6_200, "opus": 4_050, "haiku": 50, "rate": 6_200}


async def test_the_living_and_those_elsewhere_keep_what_they_hold(town):
    """Only the holds of a writer whose journal was booked to its end are ended."""
    dead, living, elsewhere = Gateway(town, 1), Gateway(town, 2), town.open_store("f" * 32)
    for request, gateway in ((1, dead), (2, living)):
        await gateway.reserve(request)
        gateway.begin(request)
    links = living.links["req_tw_2"]
    await elsewhere.reserve("req_tw_3", tuple(link.bucket for link in links), [1] * len(links), now_us=CLOCK.now_us())
    await dead.die()
    await town.work()
    assert {hold.owner for hold in await elsewhere.holds()} == {living.writer, "f" * 32}
    assert (await town.stands())["at_once"].held == 2
    elsewhere.settle("req_tw_3", (), now_us=CLOCK.now_us())
    await elsewhere.close()
    await living.die()


async def test_doing_it_again_or_twice_at_once_changes_nothing(town):
    """Two workers that end the same holds at the same moment leave what one would."""
    gateway = Gateway(town, 1)
    for request in range(20):
        await gateway.reserve(request)
        if request % 2:
            gateway.end(gateway.begin(request))
    await gateway.die()
    await asyncio.to_thread(lambda: Bookkeeper(town.folder, town.ledger, batch_entries_max=100, clock=CLOCK, lay_to_rest=lambda _: False).step())
    recoveries = [town.recovery() for _ in range(2)]
    done = await asyncio.gather(*(asyncio.to_thread(recovery.end_holds, gateway.writer) for recovery in recoveries))
    assert any(done), "one may be shut out by the other, and asks again"
    await town.work()
    assert (await town.agrees())["spend"] == 10 * 777


async def test_a_store_that_is_down_is_asked_again_and_nothing_is_forgotten(town):
    """The attempts are booked at once; the last file of the dead writer stays until its holds have ended, also if the worker dies meanwhile."""
    server = own_server()
    town.settings = limit_settings(server, store_timeout_ms=200)
    try:
        gateway = Gateway(town, 1)
        await gateway.reserve(1)
        gateway.end(gateway.begin(1))
        await gateway.die()
        server.freeze()
        await town.work()
        assert [entry.cost_nanos for entry in town.ledger.page()] == [777]
        assert files.lock_path(town.folder, gateway.writer).exists()
        assert not files.writers(town.folder)[gateway.writer], "its segments are booked and gone"
        server.thaw()
        await town.work()
        assert (await town.agrees())["spend"] == 777
        assert list(town.folder.iterdir()) == []
    finally:
        server.kill()


async def test_a_store_that_is_down_is_left_alone_for_a_while(town):
    """A worker with many dead writers does not spend its time on a store that does not answer."""
    asked = []

    class Clock:
        now = CLOCK.now_us()

        def now_us(self) -> int:
            return self.now

    def open_store(owner: str):
        asked.append(owner)
        return ValkeyLimitStore(town.settings, owner=owner)

    server = own_server()
    town.settings = limit_settings(server, store_timeout_ms=50)
    server.kill()
    clock = Clock()
    recovery = LimitRecovery(open_store=open_store, ledger=town.ledger, directory=Registry(), limits=Registry(), card=town.card, clock=clock)  # type: ignore[arg-type]
    assert not await asyncio.to_thread(recovery.end_holds, "a")
    assert not await asyncio.to_thread(recovery.end_holds, "b")
    clock.now += RETRY_US
    assert not await asyncio.to_thread(recovery.end_holds, "c")
    assert asked == ["a", "c"]


async def test_whatever_many_gateways_were_doing_when_they_died_the_counters_agree(town):
    """Random moments of death, many requests each, the worker working in between."""
    chance = random.Random(7)
    for number in range(1, 9):
        gateway = Gateway(town, number)
        for request in range(number * 100, number * 100 + chance.randrange(1, 12)):
            await gateway.reserve(request)
            for attempt in range(1, chance.randrange(1, 4)):
                begun = gateway.begin(request, attempt)
                if chance.random() < 0.3:
                    break
                ended = gateway.end(begun, cost_nanos=chance.randrange(1, 10_000))
                if attempt == 1 and chance.random() < 0.3:
                    gateway.settle(request, ended)
                    break
        if chance.random() < 0.3:
            await gateway.store.settled()
        await gateway.die()
        if chance.random() < 0.5:
            await town.work()
    await town.work()
    assert (await town.agrees())["requests"] > 10
