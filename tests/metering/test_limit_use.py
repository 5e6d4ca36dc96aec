"""Looking use up: batched, shared by those who want the same, off the event loop, and honest about failures."""

from __future__ import annotations

import asyncio
import threading

import pytest

from metering.limit_desk import START_US, Desk, limit
from tokenweir.errors import StoreUnavailable
from tokenweir.limits.book import LimitBook
from tokenweir.metering.limit_use import UseLookup


class SlowLedger:
    """Answers when it is allowed to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()

    def seeds(self, links):
        from tokenweir.limits.bucket import Seed

        self.go.wait(10)
        self.threads.add(threading.get_ident())
        self.batches.append([link.seat for link in links])
        return [Seed(link.bucket, 7, START_US) for link in links]

    def allowance(self, link, grants):
        raise StoreUnavailable


@pytest.fixture
def slow():
    ledger = SlowLedger()
    book = LimitBook(canonical=str, complete_since_us=None)
    lookup = UseLookup(ledger, book)
    yield ledger, book, lookup
    ledger.go.set()
    lookup.close()


def link_of(book: LimitBook, seat: str):
    return book.link(limit("each", "requests", 5, scope={"per": "key"}), seat, now_us=START_US)


async def test_those_who_come_while_one_reads_share_the_next_reading(slow):
    """A thousand requests that miss the same bucket, and others that miss others, are two questions and not a thousand."""
    ledger, book, lookup = slow
    first = asyncio.ensure_future(lookup.seeds([link_of(book, "a")]))
    await asyncio.sleep(0)
    rest = [asyncio.ensure_future(lookup.seeds([link_of(book, seat)])) for seat in ("b", "c", "b", "b")]
    await asyncio.sleep(0)
    ledger.go.set()
    await asyncio.gather(first, *rest)
    assert ledger.batches == [["a"], ["b", "c"]]
    assert threading.get_ident() not in ledger.threads
    assert [(await one)[0].used for one in rest] == [7, 7, 7, 7]


async def test_who_stops_waiting_does_not_stop_the_others(slow):
    """The reading goes on for whoever else wants it."""
    ledger, book, lookup = slow
    one, other = (asyncio.ensure_future(lookup.seeds([link_of(book, "a")])) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    ledger.go.set()
    assert (await other)[0].used == 7


async def test_a_failure_reaches_everybody_who_waits_and_the_next_one_asks_again():
    """No failure is remembered."""
    desk = Desk(limit("month", "requests", 5), complete=False)
    desk.ledger.fails = StoreUnavailable("down")
    (made, _), *_ = desk.book.limits()
    links = [desk.book.link(made, "", now_us=START_US)]
    for answer in await asyncio.gather(desk.lookup.seeds(links), desk.lookup.seeds(links), return_exceptions=True):
        assert isinstance(answer, StoreUnavailable)
    desk.ledger.fails = None
    assert len(await desk.lookup.seeds(links)) == 1
    desk.close()


async def test_rooms_that_cannot_be_worked_out_are_a_failure_too(slow):
    """A credit that cannot be read is not taken for no credit, nor for any."""
    _, book, lookup = slow
    with pytest.raises(StoreUnavailable):
        await lookup.allowances([link_of(book, "a")])
