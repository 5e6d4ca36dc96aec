"""The limits of one gateway process, put together: the book that follows the directory, the store, the limiter, and what keeps the counters true.

The rules it protects: before the first request is served, everything that was used in running cycles has been counted; a limit that is set, changed or
removed holds within one look at the directory; what others correct in the ledger reaches the counters. Change with it: `limiter.py`, `seeding.py`,
`processes.py` (which opens and closes it).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NoReturn

from tokenweir.errors import TokenweirError
from tokenweir.ledger_ports import Use
from tokenweir.limit_ports import LimitRecord, LimitStore
from tokenweir.limits.book import LimitBook, seat_of
from tokenweir.limits.bucket import Bucket, Kind
from tokenweir.limits.estimate import Estimator
from tokenweir.metering.limit_status import LimitStandings
from tokenweir.metering.limit_use import UseLookup
from tokenweir.metering.limiter import Limiter
from tokenweir.metering.seeding import AdjustmentFeed, LedgerUse, units
from tokenweir.metering.waiting import WaitingRoom
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.principals import Principal
from tokenweir.telemetry import log

CORRECTIONS_EVERY_S: Final = 1.0


class ProcessLimits:
    """Everything of limits that a gateway process has."""

    def __init__(
        self,
        *,
        store: LimitStore,
        use: LedgerUse,
        feed: AdjustmentFeed,
        card: RateCard,
        names: RateCard,
        clock: Clock,
        local_share_percent: int,
    ) -> None:
        self.book = LimitBook(canonical=names.resolve, complete_since_us=None if store.shared else clock.now_us())
        self.room = WaitingRoom(clock)
        self._principals: Callable[[], Sequence[Principal]] = tuple
        self._store = store
        self._use = use
        self._clock = clock
        self._lookup = UseLookup(use, self.book)
        self._feed = feed
        self.standings = LimitStandings(store=store, book=self.book, use=self._lookup)
        self.limiter = Limiter(
            store=store,
            book=self.book,
            use=self._lookup,
            room=self.room,
            card=card,
            clock=clock,
            estimator=Estimator(),
            local_share_percent=local_share_percent,
        )

    def take(self, records: Sequence[LimitRecord], whole: bool) -> None:
        """What the directory says has changed; `whole`: it is all there is."""
        if records or whole:
            live = [(record.limit, record.grants) for record in records if record.removed_at_us is None]
            self.book.update(live, [record.limit.limit_id for record in records if record.removed_at_us is not None], whole=whole)

    async def start(self, principals: Callable[[], Sequence[Principal]]) -> None:
        """Count what was used before. What cannot be read now is read when the first request needs it. `principals` tells who may call now."""
        self._principals = principals
        await self._store.open()
        try:
            await self.standings.report(principals(), waits={}, now_us=self._clock.now_us())
        except TokenweirError as error:
            log(logging.WARNING, "limits_unread", error=error.code)

    async def follow(self) -> NoReturn:
        """Keep the counters true to corrections of the ledger, until cancelled."""
        failing, told_once = False, set[str]()
        while True:
            await asyncio.sleep(CORRECTIONS_EVERY_S)
            if not len(self.book):
                continue
            try:
                news = await self._lookup.in_thread(self._feed.news)
                callers = {one.key_id: one for one in self._principals()} if news else {}
                for use in news:
                    caller = callers.get(use.key_id)
                    if caller is None:  # its key was revoked
                        caller = await self._lookup.in_thread(partial(self._use.whose, use))
                    await self._store.charge(use.entry_id, self._charges(use, caller))
                    # Told twice, a look apart: the first time a bucket may have been unknown that was then seeded from an older state of the ledger.
                    # A charge counts once for each bucket.
                    if use.entry_id in told_once:
                        self._feed.heard(use)
                        told_once.discard(use.entry_id)
                    else:
                        told_once.add(use.entry_id)
                failing = False
            except TokenweirError as error:
                if not failing:
                    log(logging.WARNING, "limits_unread", error=error.code)
                failing = True

    def _charges(self, use: Use, principal: Principal) -> list[tuple[Bucket, int]]:
        """What a correction changes of which counters: those of the cycle in which the corrected attempt began."""
        charges = []
        for limit in self.book.met(principal, use.session_id):
            if self.book.covers(limit, use.model):
                seat = seat_of(limit.scope, principal, use.session_id)
                self.book.disallow(limit, seat)  # what credits and carry-over leave may follow from the corrected attempt
                link = self.book.link(limit, seat, now_us=use.started_at_us)
                if link.bucket.kind is Kind.COUNTER and (by := units(limit.resource, use.sums)):
                    charges.append((link.bucket, by))
        return charges

    async def close(self) -> None:
        """Tell the store what is still to be told."""
        self.room.close()
        await self._store.close()
        self._lookup.close()
