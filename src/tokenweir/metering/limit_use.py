"""Asks the ledger for what was used, without holding up the event loop: many requests that miss the same thing ask once.

The rule it protects: a counter that nobody knows is never taken for zero. Reading happens in one thread, in batches: whoever comes while a batch is
under way shares the next one. Change with it: `seeding.py` (what is read), `limiter.py` (who needs it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from tokenweir.limits.book import LimitBook, Link
from tokenweir.limits.bucket import Seed
from tokenweir.limits.grants import Allowance
from tokenweir.limits.limit import Grant

R = TypeVar("R")

SEEDINGS_MAX = 4
"""How often a bucket may be found unknown before it is said that the store cannot be used: it is read twice again where uses come in between."""


class LedgerReader(Protocol):
    """Reads use from the ledger and the journal; see `seeding.LedgerUse`. Raises StoreUnavailable."""

    def seeds(self, links: Sequence[Link]) -> list[Seed]:
        """What was used of each bucket, in the order of the links."""
        ...

    def allowance(self, link: Link, grants: Sequence[Grant]) -> Allowance:
        """The room of the link's limit as its grants and past use leave it."""
        ...


class UseLookup:
    """Looks use up in a thread."""

    def __init__(self, reader: LedgerReader, book: LimitBook) -> None:
        self._reader = reader
        self._book = book
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._wanted: dict[str, tuple[Link, asyncio.Future[Seed]]] = {}
        self._running = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def seeds(self, links: Sequence[Link]) -> list[Seed]:
        """What was used of each bucket. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        futures = []
        for link in links:
            known = self._wanted.get(link.bucket.bucket_id)
            if known is None:
                known = self._wanted[link.bucket.bucket_id] = (link, loop.create_future())
            futures.append(known[1])
        if not self._running:
            self._running = True
            task = loop.create_task(self._read())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return list(await asyncio.gather(*map(asyncio.shield, futures)))

    async def _read(self) -> None:
        try:
            while self._wanted:
                batch, self._wanted = list(self._wanted.values()), {}
                try:
                    seeds = await self.in_thread(partial(self._reader.seeds, [link for link, _ in batch]))
                except BaseException as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                            future.exception()  # whoever asked may have gone; then nobody looks at it
                    if not isinstance(error, Exception):
                        raise
                    continue
                for (_, future), seed in zip(batch, seeds, strict=True):
                    if not future.done():
                        future.set_result(seed)
        finally:
            self._running = False

    async def allowances(self, links: Sequence[Link]) -> None:
        """Work out the rooms that depend on past use, and put them in the book."""
        for link in links:
            found, version = self._book.find(link.limit.limit_id), self._book.version
            grants = found[1] if found is not None else ()
            allowance = await self.in_thread(lambda link=link, grants=grants: self._reader.allowance(link, grants))  # type: ignore[misc]
            if version == self._book.version:  # otherwise it may be of grants that are no more
                self._book.allow(link, allowance)

    async def in_thread(self, work: Callable[[], R]) -> R:
        """Do something that reads the ledger, in the one thread that does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)
