"""The store of limits in Valkey or Redis, for several gateway processes and hosts.

It does what `limits/buckets.py` does, in scripts that the server runs as one step each (`limit_scripts/`, with the exact arithmetic explained in
`common.lua`). The rules it protects:

- All of a request's buckets or none, counted exactly, by the server's clock.
- An operation is answered within its bound or raises StoreUnavailable, and one that raised has no effect in the end: a reservation whose answer did not
  come is released as soon as the store is back, and what is still under way on a connection that was given up is not done after the next one has begun.
- A settlement never waits and is never forgotten while its process lives: what could not be told is told again, and counts once because a hold ends once.
- What the server holds is believed for one life of the server only: its keys bear the number of that life. After a restart, be it with an old copy of
  what it knew, each bucket is asked of the ledger again, and each process tells again what it holds.
- Holds never end by time. Those of a dead process are ended by the worker, which knows from the ledger what became of them.

Change with it: the scripts, `limit_packing.py`, `limits/buckets.py`, and the conformance suite of all stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, Final, Literal

from tokenweir.errors import SettingsInvalid, StoreUnavailable
from tokenweir.limits.bucket import Bucket, Hold, Outcome, Refused, Reserved, Seed, Standing, Unseeded
from tokenweir.periods import Micros
from tokenweir.settings import LimitSettings
from tokenweir.storage.limit_packing import pack_buckets, pack_units, unpack_hold, unpack_shortages
from tokenweir.storage.valkey import Script, Valkey, parse_address

UNTOLD_MAX: Final = 100_000
"""Settlements that are kept for a store that does not answer."""
TELLING_MAX: Final = 128
"""Kept settlements under way at once, so that requests are answered between them."""
CLOSE_S: Final = 2.0
"""How long closing waits for the last settlements."""
_CHAINS_MAX: Final = 16_384
_REFUSED_MAX: Final = 4_096
_HOLDS_AT_ONCE: Final = 256
_DOWN: Final = "the store of limits does not answer now"


def _script(name: str) -> Script:
    folder = files("tokenweir.storage") / "limit_scripts"
    return Script("\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name)))


CONNECT, RESERVE, EXTEND, SETTLE, RESTORE, CHARGE, SEED, STANDINGS = map(
    _script, ("connect", "reserve", "extend", "settle", "restore", "charge", "seed", "standings")
)


class _Own:
    """What this process holds for a request: kept to tell a server that forgot it."""

    __slots__ = ("count", "packed", "units")

    def __init__(self, count: int, packed: bytes, units: Sequence[int]) -> None:
        self.count = count
        self.packed = packed
        self.units = units


class _Settlement:
    """The end of a hold, on its way to the store."""

    __slots__ = ("arguments", "hold_id", "own")

    def __init__(self, hold_id: str, own: _Own | None, arguments: tuple[bytes, ...]) -> None:
        self.hold_id = hold_id
        self.own = own
        self.arguments = arguments


class ValkeyLimitStore:
    """`LimitStore` for several processes. `owner` is the journal writer whose holds these are."""

    shared = True

    def __init__(
        self,
        settings: LimitSettings,
        *,
        owner: str,
        on_change: Callable[[bool, str], None] | None = None,
        clock: Literal["store", "caller"] = "store",
    ) -> None:
        """`settings` has a `store_url`. `on_change` is told when the store begins and ceases to answer, and why (which names the server: for the log).

        `clock="caller"` makes `now_us` count in place of the server's clock, for tests. Raises SettingsInvalid for a URL that cannot be one, or if the
        package that reads the server's answers is not installed.
        """
        if settings.store_url is None:
            raise SettingsInvalid("limits.store_url is not set")
        address, timeout_ms, ca_file, prefix = (
            parse_address(settings.store_url),
            settings.store_timeout_ms,
            settings.store_ca_file,
            settings.store_prefix,
        )
        self._owner = owner
        self._prefix = prefix
        self._channel = f"{{{prefix}}}:room"
        self._on_change = on_change
        self._by_caller = clock == "caller"
        self._valkey = Valkey(
            address,
            timeout_ms=timeout_ms,
            ca_file=ca_file,
            scripts=(CONNECT, RESERVE, EXTEND, SETTLE, RESTORE, CHARGE, SEED, STANDINGS),
            prepare=self._begin,
            on_change=self._changed,
        )
        # What is published comes on a connection of its own: one that is subscribed takes no other commands.
        self._news = Valkey(address, timeout_ms=max(timeout_ms, 1_000), ca_file=ca_file, prepare=self._subscribe, on_message=self._on_news)
        self._prefix_now = ""
        self._keys: tuple[str | bytes | int, ...] = ()
        """What every script is given first: the keys, and after the time the owner and the number of the connection."""
        self._who: tuple[str, bytes] = ("", b"")
        self._is_open = False
        self._sweeping: asyncio.Task[None] | None = None
        self._packed: dict[int, tuple[tuple[Bucket, ...], bytes]] = {}
        self._own: dict[str, _Own] = {}
        self._telling: dict[int, _Settlement] = {}
        self._untold: dict[str, _Settlement] = {}
        self._told = 0
        self._callbacks: list[Callable[[str], None]] = []
        self._refused: dict[str, float] = {}
        """Buckets that had no room or gave some back lately, and when news of them came last."""
        self.untold_dropped = 0
        """Settlements that were not kept, because too many were; the worker ends their holds when this process is gone."""
        self.refused_settlements = 0
        """Settlements that the store said no to: there is a mistake in the program."""

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        return self._valkey.up

    @property
    def why(self) -> str:
        """Why it does not; for the log, as it names the server."""
        return self._valkey.why

    @property
    def untold(self) -> int:
        """Settlements that the store was not told yet."""
        return len(self._untold) + len(self._telling)

    async def open(self) -> None:
        """Connect. A store that does not answer now is tried again in the background. The first operation does this as well, if nobody did before."""
        await asyncio.gather(self._valkey.open(), self._news.open())
        self._is_open = True

    # Requests.

    async def reserve(self, hold_id: str, buckets: Sequence[Bucket], units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Take all or nothing."""
        if hold_id in self._untold:
            self._tell(self._untold.pop(hold_id))
        packed, began_s = self._pack(buckets), time.monotonic()
        await self._ready()
        try:
            reply = await self._run(RESERVE, now_us, hold_id, pack_units(units), packed)
        except (StoreUnavailable, asyncio.CancelledError):
            # It may have been taken, or still be: nobody will use it.
            if hold_id not in self._own:
                given_back = pack_units(-asked if bucket.taken else 0 for bucket, asked in zip(buckets, units, strict=True))
                self._keep(_Settlement(hold_id, None, (given_back, b"", b"")))
            raise
        if reply[0] == 0:
            count = len(buckets)
            if hold_id not in self._own:
                self._own[hold_id] = _Own(count, packed, units)
            numbers = iter(reply[1 : 2 * count + 1])
            return Reserved(tuple(map(Standing, numbers, numbers)), tuple(reply[2 * count + 1 :]))
        if reply[0] == 2:
            return Unseeded(tuple(reply[1:]))
        refused = Refused(unpack_shortages(reply, units))
        self._remember([buckets[shortage.index].bucket_id for shortage in refused.shortages], began_s)
        return refused

    async def extend(self, hold_id: str, units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Hold more."""
        await self._ready()
        reply = await self._run(EXTEND, now_us, hold_id, pack_units(units))
        if reply[0] == 3:
            return Reserved(())
        if reply[0] == 1:
            return Refused(unpack_shortages(reply, units))
        own = self._own.get(hold_id)
        if own is not None:
            own.units = [held + more for held, more in zip(own.units, units, strict=True)]
        numbers = iter(reply[1 : 2 * len(units) + 1])
        return Reserved(tuple(map(Standing, numbers, numbers)), tuple(reply[2 * len(units) + 1 :]))

    def settle(self, hold_id: str, used: Sequence[int], *, also: Sequence[tuple[Bucket, int]] = (), now_us: Micros) -> None:
        """End a hold. Raises ValueError if it is of another number of buckets; otherwise the store is told now, or as soon as it answers."""
        own = self._own.get(hold_id)
        if own is not None:
            if used and len(used) != own.count:
                raise ValueError(f"hold {hold_id} is of {own.count} buckets and was settled with {len(used)} numbers")
            del self._own[hold_id]
        others = pack_buckets([bucket for bucket, _ in also]) if also else b""
        arguments = (pack_units(used), others, pack_units(units for _, units in also) if also else b"")
        self._tell(_Settlement(hold_id, own, arguments), now_us)

    async def settled(self) -> None:
        """Wait until every settlement so far has reached the store."""
        left = {*self._untold.values(), *self._telling.values()}
        while left:
            await self._valkey.call("PING")
            left &= {*self._untold.values(), *self._telling.values()}

    # What the worker and the operator ask.

    async def charge(self, charge_id: str, charges: Sequence[tuple[Bucket, int]]) -> None:
        """Correct counters."""
        buckets = pack_buckets([bucket for bucket, _ in charges])
        await self._ready()
        # The time only orders the charge ids that are remembered.
        await self._valkey.run(CHARGE, *self._keys, b"", *self._who, charge_id, buckets, pack_units(units for _, units in charges))

    async def seed(self, seeds: Sequence[Seed]) -> None:
        """Tell what was used."""
        await self._ready()
        for seed in seeds:
            await self._run(SEED, seed.at_us, pack_buckets([seed.bucket]), pack_units((seed.used, seed.at_us)), *seed.included)

    async def standings(self, buckets: Sequence[Bucket], *, now_us: Micros) -> list[Standing | None]:
        """How buckets stand."""
        await self._ready()
        numbers = iter(await self._run(STANDINGS, now_us, self._pack(buckets)))
        return [Standing(used, held) if known else None for known, used, held in zip(numbers, numbers, numbers, strict=True)]

    async def holds(self, owner: str = "") -> list[Hold]:
        """Holds, all or of one owner."""
        await self._ready()
        prefix = self._prefix_now
        owners = [owner] if owner else [found.decode() for found in await self._valkey.call("SMEMBERS", f"{prefix}owners")]
        holds: list[Hold] = []
        for one in owners:
            hold_ids = [found.decode() for found in await self._valkey.call("SMEMBERS", f"{prefix}o:{one}")]
            if not hold_ids and not await self._valkey.call("EXISTS", f"{prefix}f:{one}"):
                # It has not been connected for days, and nothing of it is left.
                await self._valkey.call("SREM", f"{prefix}owners", one)
            for first in range(0, len(hold_ids), _HOLDS_AT_ONCE):
                some = hold_ids[first : first + _HOLDS_AT_ONCE]
                found = await self._valkey.call("MGET", *(f"{prefix}h:{hold_id}" for hold_id in some))
                # One that ended meanwhile is gone.
                holds += [unpack_hold(hold_id, packed) for hold_id, packed in zip(some, found, strict=True) if packed is not None]
        return holds

    def when_room(self, callback: Callable[[str], None]) -> None:
        """Be told when something was given back of a bucket that refused somebody, in any process, within the last minute."""
        self._callbacks.append(callback)

    async def close(self) -> None:
        """Tell what is still to be told, if the store answers, and let go."""
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.settled()
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping
        await self._news.close()
        self._on_change = None  # we let go of the store, it has not failed
        await self._valkey.close()

    # Scripts.

    def _pack(self, buckets: Sequence[Bucket]) -> bytes:
        """The buckets as scripts read them. Requests of a key meet the same tuple again and again."""
        if not isinstance(buckets, tuple):
            return pack_buckets(buckets)
        known = self._packed.get(id(buckets))
        if known is not None and known[0] is buckets:
            return known[1]
        if len(self._packed) >= _CHAINS_MAX:
            self._packed.clear()
        packed = pack_buckets(buckets)
        self._packed[id(buckets)] = (buckets, packed)
        return packed

    async def _ready(self) -> None:
        """Raises StoreUnavailable if the store does not answer now: then nothing is sent."""
        if not self._is_open:
            await self.open()
        if not self._valkey.up:
            raise StoreUnavailable(_DOWN)

    async def _run(self, script: Script, now_us: Micros, *arguments: str | bytes | int) -> Any:
        return await self._valkey.run(script, *self._keys, now_us if self._by_caller else b"", *self._who, *arguments)

    # Settlements.

    def _tell(self, settlement: _Settlement, now_us: Micros = 0) -> None:
        """Write it to the connection, or keep it."""
        number = self._told = self._told + 1
        if not self._valkey.up:
            self._keep(settlement)
            return
        self._telling[number] = settlement
        time_us = now_us if self._by_caller else b""
        self._valkey.post(SETTLE, (*self._keys, time_us, *self._who, settlement.hold_id, *settlement.arguments), partial(self._on_told, number))

    def _keep(self, settlement: _Settlement) -> None:
        if self._valkey.up:
            self._tell(settlement)
        elif len(self._untold) < UNTOLD_MAX:
            self._untold.setdefault(settlement.hold_id, settlement)
        else:
            self.untold_dropped += 1

    def _on_told(self, number: int, reply: object) -> None:
        settlement = self._telling.pop(number)
        if reply is None:
            # The connection was lost before the answer came.
            self._keep(settlement)
            return
        if isinstance(reply, Exception):
            self.refused_settlements += 1
        self._tell_more()

    def _tell_more(self) -> None:
        while self._untold and self._valkey.up and len(self._telling) < TELLING_MAX:
            self._tell(self._untold.pop(next(iter(self._untold))))

    # The connection.

    def _changed(self, up: bool, why: str) -> None:
        if up:
            self._tell_more()
        if self._on_change is not None:
            self._on_change(up, why)

    async def _begin(self, ask: Callable[..., Awaitable[Any]]) -> None:
        """What a new connection begins with: which life of the server it is, a number that shuts out the connection before, and what we hold."""
        told = (await ask("INFO", "server")).decode()
        life = next((line[7:19] for line in told.splitlines() if line.startswith("run_id:")), "0")
        prefix = f"{{{self._prefix}}}:{life}:"
        keys = (2, prefix, self._channel)
        known, number = await ask("EVALSHA", CONNECT.sha, *keys, b"", self._owner, b"")
        self._prefix_now, self._keys, self._who = prefix, keys, (self._owner, number)
        if not known:
            untold = ((settlement.hold_id, settlement.own) for settlement in self._untold.values() if settlement.own is not None)
            holding = [*self._own.items(), *untold]
            for first in range(0, len(holding), _HOLDS_AT_ONCE):
                some = holding[first : first + _HOLDS_AT_ONCE]
                await asyncio.gather(
                    *(ask("EVALSHA", RESTORE.sha, *keys, b"", *self._who, hold_id, pack_units(own.units), own.packed) for hold_id, own in some)
                )
        before = await ask("SET", f"{{{self._prefix}}}:life", life, "GET")
        if before is not None and before.decode() != life:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep(before.decode()))

    async def _sweep(self, life: str) -> None:
        """Take away what was kept in an earlier life of the server."""
        cursor = b"0"
        with contextlib.suppress(StoreUnavailable):
            while True:
                cursor, keys = await self._valkey.call("SCAN", cursor, "MATCH", f"{{{self._prefix}}}:{life}:*", "COUNT", 500)
                if keys:
                    await self._valkey.call("UNLINK", *keys)
                if cursor == b"0":
                    return

    # News.

    async def _subscribe(self, ask: Callable[..., Awaitable[Any]]) -> None:
        await ask("SUBSCRIBE", self._channel)
        # Nobody listened until now.
        for bucket_id in list(self._refused):
            self._call_back(bucket_id)

    def _on_news(self, message: bytes) -> None:
        bucket_id = message.decode()
        self._note(bucket_id, time.monotonic())
        self._call_back(bucket_id)

    def _call_back(self, bucket_id: str) -> None:
        for callback in self._callbacks:
            callback(bucket_id)

    def _remember(self, bucket_ids: list[str], began_s: float) -> None:
        """Buckets had no room. News of them that came while that answer was under way would be missed by whoever begins to wait now: tell it again."""
        for bucket_id in bucket_ids:
            news_s = self._refused.get(bucket_id, 0.0)
            self._note(bucket_id, news_s)
            if news_s >= began_s:
                asyncio.get_running_loop().call_soon(self._call_back, bucket_id)

    def _note(self, bucket_id: str, news_s: float) -> None:
        self._refused.pop(bucket_id, None)
        if len(self._refused) >= _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._refused[bucket_id] = news_s
