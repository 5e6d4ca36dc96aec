"""The ports of limits: the directory that says which there are, and the store that counts them.

The directory is SQL (adapter: `storage/limit_directory.py`, rules: `limiting.py`). The state of limits lives in the memory of one gateway process, or
in Valkey or Redis for several; both adapters of the store pass the same conformance suite (tests/storage/test_limit_stores.py). Adapters: `storage/limit_memory.py`, `storage/limit_valkey.py`;
`app.py` chooses. A store that does not answer within its bound raises `StoreUnavailable`: what then happens is decided by `metering/limiter.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from tokenweir.limits.bucket import Bucket, Hold, Outcome, Seed, Standing
from tokenweir.limits.limit import Grant, Limit
from tokenweir.periods import Micros


class LimitRecord(msgspec.Struct, frozen=True):
    """A limit as the directory has it: with all its grants, and with the names of its scope."""

    limit: Limit
    organization: str
    team: str = ""
    key: str = ""
    grants: tuple[Grant, ...] = ()
    removed_at_us: Micros | None = None


RequestState = Literal["pending", "approved", "denied", "withdrawn"]


class Comment(msgspec.Struct, frozen=True):
    """What somebody said about a request for more."""

    at_us: Micros
    by: str
    text: str


class IncreaseRequest(msgspec.Struct, frozen=True):
    """A request for more room in a limit, and what became of it. An approved one has made a grant, in the same transaction."""

    request_id: str
    limit_id: str
    amount: int
    """Units of the limit's resource, besides what there is."""
    until_us: Micros | None
    """Until when it is wanted; None: to the end of the limit's current cycle."""
    reason: str
    requested_by: str
    created_at_us: Micros
    state: RequestState = "pending"
    decided_by: str = ""
    decided_at_us: Micros | None = None
    grant_id: str = ""
    comments: tuple[Comment, ...] = ()


class LimitDirectory(Protocol):
    """Limits, grants and requests for more. Each change is one transaction with its audit records, and moves the directory's revision."""

    def limits(
        self, *, removed: bool = False, named: str = "", organization_id: str = "", team_id: str | None = None, key_id: str | None = None
    ) -> list[LimitRecord]:
        """Limits in order of creation; with `removed`, also those that were taken away.

        `named` is an id or a name. An empty team or key (not None) asks for limits that name none.
        """
        ...

    def put_limits(self, limits: Sequence[Limit], *, removed: Sequence[str] = (), actor: str, now_us: Micros) -> None:
        """Insert limits, or replace those of the same id, and take away others, all or nothing. Those that are the same already change nothing.

        Conflict for a name that another limit has, and for a limit that would count something else than before under its id (`identity.counts_the_same`):
        that one must be removed, and one with a new id put in its place. It takes over the name, the grants and the open requests of the removed one.
        """
        ...

    def add_grant(self, grant: Grant, *, actor: str, now_us: Micros) -> None:
        """Give more room; NotFound if there is no such limit."""
        ...

    def void_grant(self, grant_id: str, *, actor: str, now_us: Micros) -> Grant:
        """End a grant from now on; NotFound if there is none. Voiding twice changes nothing."""
        ...

    def grants(self, *, limit_id: str = "", voided: bool = False) -> list[Grant]:
        """Grants in order of creation."""
        ...

    def add_request(self, request: IncreaseRequest, *, actor: str) -> None:
        """Ask for more; NotFound if there is no such limit."""
        ...

    def comment_request(self, request_id: str, comment: Comment, *, actor: str) -> IncreaseRequest:
        """Say something about a request."""
        ...

    def decide_request(
        self, request_id: str, state: RequestState, *, grant: Grant | None, comment: Comment | None, actor: str, now_us: Micros
    ) -> IncreaseRequest:
        """Approve (with the grant it makes), deny or withdraw a pending request; Conflict if it is decided already."""
        ...

    def request(self, request_id: str) -> IncreaseRequest:
        """One request; NotFound if there is none."""
        ...

    def requests(self, *, limit_id: str = "", state: str = "") -> list[IncreaseRequest]:
        """Requests in order of creation."""
        ...


class LimitStore(Protocol):
    """Buckets and holds. Every operation is atomic over all buckets it names, and idempotent by its id."""

    @property
    def shared(self) -> bool:
        """Whether other processes count in the same buckets."""
        ...

    async def open(self) -> None:
        """Be ready, as far as that depends on us: a shared store that does not answer now is tried again later."""
        ...

    async def reserve(self, hold_id: str, buckets: Sequence[Bucket], units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Take `units[i]` of each bucket, held under `hold_id`, or nothing. A hold id that is there already answers as if it were new, and changes nothing."""
        ...

    async def extend(self, hold_id: str, units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Hold more of the hold's buckets, in their order. Refused (and then nothing is added) only for want of room in a bucket that `ends_streams`.

        An unknown hold id (settled meanwhile) answers Reserved with no standings.
        """
        ...

    def settle(self, hold_id: str, used: Sequence[int], *, also: Sequence[tuple[Bucket, int]] = (), now_us: Micros) -> None:
        """End the hold: nothing of it is held any more, and `used[i]` is used of each of its buckets (for a bucket that was `taken`: used besides).

        `also` is used of buckets that the hold did not cover. Never waits: a shared store is told as soon as it can be. Settling twice changes nothing.
        An empty `used` stands for zeros.
        """
        ...

    async def settled(self) -> None:
        """Wait until every settlement so far has reached the store; raises StoreUnavailable."""
        ...

    async def charge(self, charge_id: str, charges: Sequence[tuple[Bucket, int]]) -> None:
        """Correct counters the store knows by `units`, which may be negative; once for each charge id and bucket. Buckets it does not know are left alone."""
        ...

    async def seed(self, seeds: Sequence[Seed]) -> None:
        """Tell what was used of buckets that the store does not know; those it knows stay as they are."""
        ...

    async def standings(self, buckets: Sequence[Bucket], *, now_us: Micros) -> list[Standing | None]:
        """How they stand; None for one that is not known (a `fresh` one stands at zero)."""
        ...

    async def holds(self, owner: str = "") -> list[Hold]:
        """All holds, or those of one owner."""
        ...

    def when_room(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the id of a bucket whenever some of what was held or used of it was given back. For the queue.

        A shared store tells it only of buckets that refused somebody, in any process, within the last minute.
        """
        ...

    async def close(self) -> None:
        """Tell what is still to be told, within a bound, and let go."""
        ...
