"""Who is calling: the gateway's snapshot of all accepted keys, kept fresh from the directory, and the upstream credential each key uses.

The rules it protects: a good key costs one digest and one dictionary lookup, never a store; a malformed key never reaches a store either; an
unknown, a revoked and an expired key get the same answer by the same path; a key made a moment ago works at once, because an unknown key is looked
for once more, in a refresh that all unknown keys of the moment share and that cannot run more often than `REFRESH_SPACING_NS`; a revocation takes
effect within one `POLL_SECONDS` plus one query. While the directory is down, the last known keys stay valid. Change with it: `key_tokens`,
`storage/directory.py` (which says what has changed), `policies` (which decides).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn

import msgspec

from tokenweir import key_tokens, telemetry
from tokenweir.errors import CredentialUnusable, Forbidden, StoreUnavailable, TokenweirError, Unauthenticated
from tokenweir.limit_ports import LimitRecord
from tokenweir.policies import Network, parse_networks, permit_caller
from tokenweir.ports import Clock, DirectoryChanges, DirectoryFeed, KeyGrant, SealedCredential, Vault
from tokenweir.principals import Principal
from tokenweir.wire.headers import Headers, credentials

POLL_SECONDS: Final = 0.25
REFRESH_SPACING_NS: Final = 50_000_000
"""Least time between two reads of the directory: at most 20 a second, however many unknown keys arrive."""
REFRESH_WAIT_SECONDS: Final = 5.0
"""How long an unknown key may wait for the directory before the answer is that it cannot be reached."""
CREDENTIAL_REREAD_NS: Final = 30_000_000_000
"""Credentials in files and the environment are read again this often, so that a rotated file is noticed."""
MISSES_PER_ADDRESS_MAX: Final = 20
"""Unknown keys that one address may have looked up in a burst; beyond it they are refused from memory, at the rate of `MISS_PERIOD_NS`."""
MISS_PERIOD_NS: Final = 1_000_000_000
_ADDRESSES_MAX: Final = 8_192

NOT_ACCEPTED: Final = "this key is not known here, or it was revoked or has expired"
MALFORMED: Final = "this is not a Tokenweir key (they start with tw_ and end in a checksum): check that it was copied whole"


class _Held(msgspec.Struct, frozen=True):
    """A grant with what would be costly to work out again for every call."""

    grant: KeyGrant
    networks: tuple[Network, ...]


class Authenticator:
    """Finds the grant behind a token, follows the directory, and knows the upstream credential of each grant."""

    def __init__(
        self, feed: DirectoryFeed, vault: Vault, clock: Clock, *, on_limits: Callable[[Sequence[LimitRecord], bool], None] | None = None
    ) -> None:
        """`on_limits` is told on the event loop which limits have changed, and whether those are all there are."""
        self._on_limits = on_limits
        self._feed = feed
        self._vault = vault
        self._clock = clock
        self._digest = key_tokens.digester(vault.pepper)
        self._held: dict[bytes, _Held] = {}
        self._sealed: dict[str, SealedCredential] = {}
        self._upstream_keys: dict[str, str] = {}
        self._upstream_faults: dict[str, str] = {}
        self._upstream_read_ns = 0
        self._revision = 0
        self._loaded = False
        self._available = True
        self._fresh_ns = clock.monotonic_ns()
        self._turn = asyncio.Lock()
        self._running: asyncio.Future[_Read] | None = None
        self._started_ns = -REFRESH_SPACING_NS
        self._misses = _Misses()
        self._sought: Counter[bytes] = Counter()
        """Unknown keys that are being looked for, and by how many requests."""
        # One thread: a directory that hangs holds up one read, never the threads that others use.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="directory")

    def __repr__(self) -> str:
        return f"Authenticator(keys={len(self._held)}, revision={self._revision})"

    async def load(self) -> None:
        """Read the whole directory once, before serving; raises StoreUnavailable."""
        if not await self._refresh():
            raise StoreUnavailable("the keys cannot be read from the database")

    @property
    def ready(self) -> bool:
        """Whether the directory has been read at all."""
        return self._loaded

    def find(self, token: str) -> KeyGrant | None:
        """The grant of a token, if this snapshot accepts it. A lookup by keyed digest takes the same time whatever part of a guess is right."""
        held = self._lookup(token)
        return None if held is None else held.grant

    def principals(self) -> list[Principal]:
        """Who may call now, each key once."""
        return list({held.grant.principal.key_id: held.grant.principal for held in self._held.values()}.values())

    async def authenticate(self, headers: Headers, *, address: str) -> KeyGrant:
        """The grant of the caller; raises InvalidRequest, Unauthenticated, Forbidden, or StoreUnavailable when it cannot be known."""
        token = credentials(headers)
        held = self._lookup(token)
        if held is None or self._expired(held):
            held = await self._look_again(token, address)
        denied = permit_caller(held.grant.policy, now_us=self._clock.now_us(), address=address, networks=held.networks)
        if denied is not None:
            telemetry.REFUSED_KEYS.labels(denied.reason).inc()
            raise Forbidden(denied.message)
        return held.grant

    def credential_for(self, grant: KeyGrant) -> str:
        """The key to send upstream, from memory; raises CredentialUnusable. Why it cannot be used is in the log, for the operator alone."""
        try:
            return self._upstream_keys[grant.credential_id]
        except KeyError:
            raise CredentialUnusable from None

    async def follow(self) -> NoReturn:
        """Keep the snapshot fresh until cancelled. A directory that is down is logged once and asked again; what is known stays valid."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_WAIT_SECONDS):
                    await self._refresh()
            telemetry.DIRECTORY_STALE_SECONDS.set((self._clock.monotonic_ns() - self._fresh_ns) / 1e9)

    def close(self) -> None:
        """Let the reading thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # Looking up.

    def _lookup(self, token: str) -> _Held | None:
        if len(token) != key_tokens.TOKEN_LENGTH or not token.isascii():
            return None
        return self._held.get(self._digest(token))

    def _expired(self, held: _Held) -> bool:
        expires = held.grant.policy.expires_at_us
        return expires is not None and self._clock.now_us() >= expires

    async def _look_again(self, token: str, address: str) -> _Held:
        """What a token that the snapshot does not accept turns out to be after one more look at the directory."""
        if not key_tokens.check(token):
            telemetry.REFUSED_KEYS.labels("malformed").inc()
            raise Unauthenticated(MALFORMED)
        # A crowd that comes with one new key is one guess, however many they are: who guesses has another key each time.
        guess = self._digest(token)
        if guess not in self._sought and not self._misses.allow(address, self._clock.monotonic_ns()):
            telemetry.REFUSED_KEYS.labels("throttled").inc()
            raise Unauthenticated(NOT_ACCEPTED)
        self._sought[guess] += 1
        try:
            async with asyncio.timeout(REFRESH_WAIT_SECONDS):
                known = await self._refresh()
        except TimeoutError:
            known = False
        finally:
            self._sought[guess] -= 1
            if not self._sought[guess]:
                del self._sought[guess]
        if not known:
            raise StoreUnavailable("this key is not among the known ones, and the database cannot be asked for newer ones now")
        held = self._lookup(token)
        if held is None or self._expired(held):
            telemetry.REFUSED_KEYS.labels("unknown").inc()
            raise Unauthenticated(NOT_ACCEPTED)
        self._misses.forgive(address)
        return held

    # Following the directory.

    async def _refresh(self) -> bool:
        """Wait for a read of the directory that began after this call; whether it succeeded. Callers that come meanwhile share the next one."""
        arrived_ns = self._clock.monotonic_ns()
        async with self._turn:
            while self._started_ns < arrived_ns or self._running is None:
                await self._finish()
                wait_ns = self._started_ns + REFRESH_SPACING_NS - self._clock.monotonic_ns()
                if wait_ns > 0:
                    await asyncio.sleep(wait_ns / 1e9)
                self._started_ns = self._clock.monotonic_ns()
                self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._read)
                self._running.add_done_callback(self._take)
            await self._finish()
        return self._available

    async def _finish(self) -> None:
        """Wait until no read is under way. Someone who stops waiting does not stop the read, which others may share."""
        if self._running is not None and not self._running.done():
            await asyncio.wait({self._running})

    def _read(self) -> _Read:
        """In the thread: what has changed, with upstream keys resolved and networks parsed, so that the event loop only has to put it in place."""
        changes = self._feed.changes_since(self._revision)
        whole = not self._loaded
        if changes.revision < self._revision:  # the database was put back to an earlier state: start over
            changes, whole = self._feed.changes_since(0), True
        moved = whole or changes.revision != self._revision
        sealed = {one.credential_id: one for one in changes.credentials} if moved else self._sealed
        now_ns = self._clock.monotonic_ns()
        keys: dict[str, str] | None = None
        faults: dict[str, str] = {}
        if whole or sealed != self._sealed or now_ns - self._upstream_read_ns >= CREDENTIAL_REREAD_NS:
            keys, faults = self._resolve(sealed)
        held = {grant.digest: _Held(grant, parse_networks(grant.policy)) for grant in changes.grants}
        return _Read(changes, whole, held, sealed, keys, faults, now_ns)

    def _resolve(self, sealed: Mapping[str, SealedCredential]) -> tuple[dict[str, str], dict[str, str]]:
        """Every upstream key that can be had, and a sentence for each that cannot. One that was had before and has not changed stays in use."""
        keys: dict[str, str] = {}
        faults: dict[str, str] = {}
        for credential_id, credential in ({"": None} | dict(sealed)).items():
            try:
                keys[credential_id] = self._vault.upstream_key(credential)
            except Exception as error:  # one unusable credential must not keep the others from being used
                faults[credential_id] = error.message if isinstance(error, TokenweirError) else f"it cannot be read: {type(error).__name__}"
                if credential_id in self._upstream_keys and self._sealed.get(credential_id) == credential:
                    keys[credential_id] = self._upstream_keys[credential_id]
        return keys, faults

    def _take(self, running: asyncio.Future[_Read]) -> None:
        """On the event loop: put in place what was read."""
        error = None if running.cancelled() else running.exception()
        if running.cancelled() or error is not None:
            if self._available and error is not None:
                telemetry.log(logging.WARNING, "directory_unavailable", error=type(error).__name__)
            telemetry.DIRECTORY_FAILURES.inc()
            self._available = False
            return
        read = running.result()
        if read.whole:
            self._held = read.held
        else:
            self._held.update(read.held)
            for digest in read.changes.gone:
                self._held.pop(digest, None)
        self._sealed = read.sealed
        if read.upstream_keys is not None:
            for credential_id, fault in read.upstream_faults.items():
                if self._upstream_faults.get(credential_id) != fault and (credential_id or not read.sealed):
                    telemetry.log(logging.WARNING, "credential_unusable", credential_id=credential_id or "settings", error=fault)
            self._upstream_keys, self._upstream_faults, self._upstream_read_ns = read.upstream_keys, read.upstream_faults, read.at_ns
        if self._on_limits is not None:
            self._on_limits(read.changes.limits, read.whole)
        self._revision = read.changes.revision
        self._fresh_ns = read.at_ns
        self._loaded = self._available = True


@dataclass(frozen=True, slots=True, repr=False)
class _Read:
    """What one read of the directory brought. It prints nothing, because it holds upstream keys."""

    changes: DirectoryChanges
    whole: bool
    held: dict[bytes, _Held]
    sealed: dict[str, SealedCredential]
    upstream_keys: dict[str, str] | None
    """None: those there were still hold."""
    upstream_faults: dict[str, str]
    at_ns: int


class _Misses:
    """How many unknown keys each address has lately had looked up: a rolling limit that is one integer per address, for a bounded number of them."""

    def __init__(self) -> None:
        self._idle_at_ns: dict[str, int] = {}

    def allow(self, address: str, now_ns: int) -> bool:
        """Count one miss of the address; False when it had too many."""
        idle_at_ns = max(self._idle_at_ns.pop(address, 0), now_ns)
        allowed = idle_at_ns - now_ns < MISSES_PER_ADDRESS_MAX * MISS_PERIOD_NS
        self._idle_at_ns[address] = idle_at_ns + MISS_PERIOD_NS if allowed else idle_at_ns
        if len(self._idle_at_ns) > _ADDRESSES_MAX:
            del self._idle_at_ns[next(iter(self._idle_at_ns))]  # the one that has been quiet for longest
        return allowed

    def forgive(self, address: str) -> None:
        """A key turned out to be good: the look at the directory was worth it."""
        self._idle_at_ns.pop(address, None)
