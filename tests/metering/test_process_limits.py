"""The limits of a process: they follow the directory, begin with what was used, and hear of corrections."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from metering.limit_desk import CARD, RED, START_US, Clock, limit
from tokenweir.errors import StoreUnavailable
from tokenweir.ledger.rollups import Sums
from tokenweir.ledger_ports import Use
from tokenweir.limit_ports import LimitRecord
from tokenweir.limits.bucket import Seed
from tokenweir.metering import process_limits
from tokenweir.metering.process_limits import ProcessLimits
from tokenweir.storage.limit_memory import MemoryLimitStore


class Books:
    """A ledger that has seen four requests, and tells of corrections until they were heard."""

    def __init__(self) -> None:
        self.corrections: list[Use] = []
        self.fails = False

    def seeds(self, links):
        return [Seed(link.bucket, 4, START_US) for link in links]

    def allowance(self, link, grants):
        raise AssertionError("no limit here has grants")

    def news(self):
        if self.fails:
            raise StoreUnavailable
        return list(self.corrections)

    def heard(self, use):
        self.corrections.remove(use)

    def whose(self, use):
        return msgspec.structs.replace(RED, key_id=use.key_id, owner="bob@example.org")


def record(made, **more) -> LimitRecord:
    return LimitRecord(made, "Acme", **more)


@pytest.fixture
async def limits(monkeypatch):
    monkeypatch.setattr(process_limits, "CORRECTIONS_EVERY_S", 0.001)
    books = Books()
    made = ProcessLimits(
        store=MemoryLimitStore("w"),
        use=books,
        feed=books,
        card=CARD,
        names=CARD,
        clock=Clock(),
        local_share_percent=25,  # type: ignore[arg-type]
    )
    yield made, books
    await made.close()


async def used(made: ProcessLimits) -> dict[str, int | None]:
    return {one.limit_id: one.used for one in await made.standings.report([RED], waits={}, now_us=START_US)}


async def spent(made: ProcessLimits, nanos: int) -> None:
    """Wait until the counter says so."""
    for _ in range(2_000):
        if (await used(made))["spend"] == nanos:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"the counter says {await used(made)}")


async def test_limits_come_change_and_go_with_the_directory(limits):
    """A removed limit is gone; the whole directory replaces what was known."""
    made, _ = limits
    made.take([record(limit("a", "requests", 5)), record(limit("b", "requests", 5))], whole=True)
    made.take([record(limit("a", "requests", 5), removed_at_us=1)], whole=False)
    assert [one.limit_id for one, _ in made.book.limits()] == ["b"]
    made.take([], whole=False)
    assert len(made.book) == 1
    made.take([], whole=True)
    assert len(made.book) == 0


async def test_it_begins_with_what_was_used(limits):
    """Before the first request every counter knows what the ledger knows."""
    made, _ = limits
    made.take([record(limit("a", "requests", 5))], whole=True)
    await made.start(lambda: [RED])
    assert await used(made) == {"a": 4}


async def test_a_correction_of_the_ledger_reaches_the_counters(limits):
    """What an operator adjusts is what limits show, once."""
    made, books = limits
    made.take([record(limit("spend", "spend", 10**12)), record(limit("blue", "spend", 5, team="team_blue"))], whole=True)
    await made.start(lambda: [RED])
    following = asyncio.ensure_future(made.follow())
    books.corrections.append(Use("adj", START_US, START_US, "org", "team_red", "key_1", "claude-sonnet-5-5", "", Sums(cost_nanos=-3)))
    await spent(made, 1)
    assert (await used(made))["blue"] == 4
    following.cancel()


async def test_a_correction_of_a_revoked_key_reaches_its_owner_and_its_tags(limits):
    """Who may not call any more still has an owner: the counter that the attempt was charged to is the one that is corrected."""
    made, books = limits
    made.take([record(limit("spend", "spend", 10**12, scope={"user": "bob@example.org"}))], whole=True)
    await made.start(lambda: [msgspec.structs.replace(RED, owner="bob@example.org")])
    following = asyncio.ensure_future(made.follow())
    books.corrections.append(Use("adj", START_US, START_US, "org", "team_red", "key_gone", "claude-sonnet-5-5", "", Sums(cost_nanos=-3)))
    await spent(made, 1)
    following.cancel()


async def test_a_ledger_that_is_down_is_asked_again(limits):
    """Corrections are heard when it is back."""
    made, books = limits
    made.take([record(limit("spend", "spend", 10**12))], whole=True)
    await made.start(lambda: [RED])
    books.fails = True
    following = asyncio.ensure_future(made.follow())
    await asyncio.sleep(0.01)
    books.corrections.append(Use("adj", START_US, START_US, "org", "team_red", "key_1", "claude-sonnet-5-5", "", Sums(cost_nanos=6)))
    books.fails = False
    await spent(made, 10)
    following.cancel()
