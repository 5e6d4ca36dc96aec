"""Every effect the system needs, as a few protocols on one page.

Adapters live in `storage/` and are named by `app.py` alone. They are synchronous: the worker and the command line call them directly, the gateway
calls them in a thread and never on its event loop. A database that does not answer raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from tokenweir.ledger.entries import Entry
from tokenweir.periods import Micros
from tokenweir.policies import Policy
from tokenweir.principals import Principal


class Clock(Protocol):
    """The time; only `app.py` makes a real one."""

    def now_us(self) -> Micros:
        """Wall clock, in microseconds, never going backwards within a process."""
        ...

    def monotonic_ns(self) -> int:
        """For durations."""
        ...


# The directory: organizations, teams, keys, credentials. Owner of the rules: issuing.py; adapter: storage/directory.py.


class KeyGrant(msgspec.Struct, frozen=True):
    """One accepted secret of a key, as the gateway's snapshot holds it. A key under rotation has two."""

    digest: bytes
    """HMAC-SHA-256 of the whole token under the pepper."""
    principal: Principal
    policy: Policy
    credential_id: str = ""
    """The upstream credential of the team or organization; empty means the one in the settings."""


class SealedCredential(msgspec.Struct, frozen=True):
    """An upstream credential as stored: where it comes from, and its sealed bytes if the store holds it."""

    credential_id: str
    source: str
    """`env:NAME`, `file:PATH` or `sealed`."""
    sealed: bytes = b""


class DirectoryChanges(msgspec.Struct, frozen=True):
    """All that changed after a revision: grants to put in, digests to take out."""

    revision: int
    grants: tuple[KeyGrant, ...] = ()
    gone: tuple[bytes, ...] = ()
    credentials: tuple[SealedCredential, ...] = ()


class DirectoryFeed(Protocol):
    """What the gateway needs of the directory."""

    def changes_since(self, revision: int) -> DirectoryChanges:
        """Changes after `revision` (0 = everything). A revocation or an expired overlap shows as `gone`."""
        ...


# The ledger: entries, rollups, checkpoints. Writers: workers/bookkeeping.py and the ledger commands; reader: metering/spend.py.


class Checkpoint(msgspec.Struct, frozen=True):
    """How far the journal of one writer has been booked: everything before `offset` of `segment`."""

    writer: str
    segment: int
    offset: int


class LedgerStore(Protocol):
    """Append-only entries with their rollups; every write is one transaction and idempotent by entry id."""

    def checkpoints(self) -> dict[str, Checkpoint]:
        """The checkpoint of each journal writer that has been read."""
        ...

    def book(self, entries: Sequence[Entry], checkpoints: Sequence[Checkpoint]) -> int:
        """Insert the entries that are new, add them to the rollups, move the checkpoints; returns how many were new."""
        ...

    def entries(self, *, after: str = "", limit: int = 1000) -> Iterator[Entry]:
        """Entries in order of `entry_id`, after the given one."""
        ...
