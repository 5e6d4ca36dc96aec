"""Every effect the system needs, as a few protocols on one page.

Adapters live in `storage/` and are named by `app.py` alone. They are synchronous: the worker and the command line call them directly, the gateway
calls them in a thread and never on its event loop. A database that does not answer raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from tokenweir.ledger.entries import Entry
from tokenweir.ledger.rollups import Dims, Grain, Sums
from tokenweir.ledger.sources import Booked
from tokenweir.limit_ports import LimitRecord
from tokenweir.periods import Micros
from tokenweir.policies import Policy
from tokenweir.principals import Principal
from tokenweir.wire.telemetry import MetricPoint


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
    """An upstream credential as stored: where it comes from, where it may be sent, and its sealed bytes if the store holds it."""

    credential_id: str
    source: str
    """`env:NAME`, `file:PATH` or `sealed`."""
    base_url: str
    """The upstream it was given for. It is never sent to another one."""
    sealed: bytes = b""


class DirectoryChanges(msgspec.Struct, frozen=True):
    """All that changed after a revision: grants to put in, digests to take out."""

    revision: int
    grants: tuple[KeyGrant, ...] = ()
    gone: tuple[bytes, ...] = ()
    credentials: tuple[SealedCredential, ...] = ()
    """All there are, not only the changed ones, whenever the revision is another one: they are few."""
    limits: tuple[LimitRecord, ...] = ()
    """Those that were set, changed, given grants or removed."""


class DirectoryFeed(Protocol):
    """What the gateway needs of the directory."""

    def changes_since(self, revision: int) -> DirectoryChanges:
        """Changes after `revision` (0 = everything). A revoked secret shows as `gone`; one in its overlap has the end of it as its expiry."""
        ...


class OrganizationRecord(msgspec.Struct, frozen=True):
    """An organization: whoever pays the provider's bill."""

    organization_id: str
    organization: str
    created_at_us: Micros


class TeamRecord(msgspec.Struct, frozen=True):
    """A team of an organization."""

    organization_id: str
    organization: str
    team_id: str
    team: str
    created_at_us: Micros


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as people see it; no part of any secret is in it."""

    key_id: str
    organization_id: str
    organization: str
    team_id: str
    team: str
    name: str
    owner: str
    tags: tuple[str, ...]
    policy: Policy
    created_at_us: Micros
    revoked_at_us: Micros | None = None
    overlap_ends_at_us: Micros | None = None
    """After a rotation: until when the secret before it is still accepted."""


class CredentialRecord(msgspec.Struct, frozen=True):
    """An upstream credential as people see it: whose it is and where it comes from."""

    credential_id: str
    organization_id: str
    organization: str
    team_id: str
    """Empty for the credential of the whole organization."""
    team: str
    source: str
    base_url: str
    created_at_us: Micros


class AuditRecord(msgspec.Struct, frozen=True):
    """One change of the directory: who, when, what, and how it was before and after."""

    at_us: Micros
    actor: str
    action: str
    subject: str
    before: str
    """JSON; empty when there was nothing before."""
    after: str


class Directory(DirectoryFeed, Protocol):
    """The writing side. Each change is one transaction with its audit record, and moves the revision that the gateways follow."""

    def ensure_organization(self, new: OrganizationRecord, *, actor: str) -> OrganizationRecord:
        """The organization of that name, created with the id of `new` if there is none."""
        ...

    def ensure_team(self, new: TeamRecord, *, actor: str) -> TeamRecord:
        """The team of that name in the organization of that name; what is missing of the two is created with the ids of `new`."""
        ...

    def add_key(self, key: KeyRecord, digest: bytes, *, actor: str) -> None:
        """Store a new key with its first secret; Conflict if the team has a live key of that name."""
        ...

    def replace_secret(self, key_id: str, digest: bytes, *, overlap_ends_at_us: Micros, now_us: Micros, actor: str) -> KeyRecord:
        """Store a new secret; the newest one before it is accepted until the overlap ends, older ones no longer. Conflict if revoked."""
        ...

    def revoke_key(self, key_id: str, *, now_us: Micros, actor: str) -> KeyRecord:
        """No secret of the key is accepted any more. Revoking twice changes nothing."""
        ...

    def keys(self, *, team: str = "", named: str = "", revoked: bool = True) -> list[KeyRecord]:
        """Keys in order of creation; `named` is an id or a name."""
        ...

    def organizations(self) -> list[OrganizationRecord]:
        """All organizations, by name."""
        ...

    def teams(self) -> list[TeamRecord]:
        """All teams, by name."""
        ...

    def set_credential(self, record: CredentialRecord, sealed: bytes, *, actor: str) -> None:
        """Store the credential of a team or organization in place of the one it has."""
        ...

    def remove_credential(self, credential_id: str, *, now_us: Micros, actor: str) -> None:
        """Forget the credential; NotFound if there is none."""
        ...

    def credentials(self) -> list[CredentialRecord]:
        """All credentials, without their content."""
        ...

    def audit_records(self, *, limit: int = 100, subjects: Sequence[str] = ()) -> list[AuditRecord]:
        """The latest changes, newest first: all, or those of certain things by their ids."""
        ...


class Vault(Protocol):
    """Secrets that live outside the database. Adapter: storage/secrets.py."""

    @property
    def pepper(self) -> bytes:
        """The key of every token digest."""
        ...

    def seal(self, credential_id: str, base_url: str, text: str) -> bytes:
        """The text, encrypted so that only this vault opens it, and only for this credential and this upstream."""
        ...

    def upstream_key(self, credential: SealedCredential | None) -> str:
        """The key to send upstream; None asks for the one in the settings. Reads files: never on an event loop. Raises CredentialUnusable."""
        ...


# The ledger: entries, rollups, checkpoints. Writers: workers/bookkeeping.py and the ledger commands; reader: metering/spend.py.


class Checkpoint(msgspec.Struct, frozen=True):
    """How far the journal of one writer has been booked: everything before `offset` of `segment`."""

    writer: str
    segment: int
    offset: int


class Cell(msgspec.Struct, frozen=True):
    """Sums of a rollup, by time and the dimensions that were asked for."""

    bucket_us: Micros
    """Start of the bucket; 0 if the buckets were added up."""
    group: tuple[str, ...]
    """The values of the dimensions, in the order they were asked for."""
    sums: Sums


class Use(msgspec.Struct, frozen=True, gc=False):
    """What one entry of the gateway's own used, without all that limits do not ask for. Of an adjustment all counts are differences."""

    entry_id: str
    started_at_us: Micros
    ended_at_us: Micros
    organization_id: str
    team_id: str
    key_id: str
    model: str
    session_id: str
    sums: Sums


class Names(msgspec.Struct, frozen=True):
    """What the directory calls the things that entries know by id. What is missing was deleted or belongs to another database."""

    organizations: dict[str, str]
    teams: dict[str, str]
    keys: dict[str, str]
    """Name by id; the name of a key is that within its team."""


class ImportProgress(msgspec.Struct, frozen=True):
    """How far a file of another source has been booked, and what became of its rows since it was first seen (or seen to be another file)."""

    source: str
    place: str
    """The path of the file, absolute."""
    inode: int = 0
    size_bytes: int = 0
    modified_at_us: Micros = 0
    byte_offset: int = 0
    """Everything before it has been booked."""
    line_no: int = 0
    rows_read: int = 0
    rows_skipped: int = 0
    """Rows that are no call to the Claude API."""
    rows_refused: int = 0
    """Rows that should be a call and could not be believed."""
    booked: Booked = Booked()
    first_run_at_us: Micros = 0
    last_run_at_us: Micros = 0
    problem: str = ""
    """The last thing that went wrong, in one sentence."""


class ProviderReport(msgspec.Struct, frozen=True):
    """One page of a report of the provider, as it was received. For reconciliation; it is never booked."""

    report_id: str
    """A digest of the content, so that the same page is kept once."""
    kind: str
    """`usage`, `cost`, `claude_code`, `analytics_usage` or `analytics_cost`."""
    starting_at_us: Micros
    ending_at_us: Micros
    rows: int
    received_at_us: Micros
    origin: str
    """The file it came from."""
    content: bytes


class ProviderModel(msgspec.Struct, frozen=True):
    """A model as the provider lists it, and since when it is seen there. Dates are as the provider writes them; empty: not said."""

    model_id: str
    display_name: str = ""
    lifecycle: str = ""
    """`active`, `deprecated` or `retired`; empty if the provider does not say."""
    created_at: str = ""
    deprecated_at: str = ""
    retires_at: str = ""
    first_seen_at_us: Micros = 0
    last_seen_at_us: Micros = 0
    """Earlier than that of the others: it is not listed any more."""
    changed_at_us: Micros = 0
    """When its lifecycle or its dates were first seen as they are."""


class ProviderModels(Protocol):
    """What the provider lists at `GET /v1/models`."""

    def keep_listing(self, listed: Sequence[ProviderModel], *, now_us: Micros) -> None:
        """Store a whole listing, seen now. Models that are not in it stay as they were last seen."""
        ...

    def listed(self) -> list[ProviderModel]:
        """Every model that was ever listed, in order of its id."""
        ...


class TelemetrySum(msgspec.Struct, frozen=True):
    """What the points of a day come to."""

    day_us: Micros
    key_id: str
    session_id: str
    model: str
    metric: str
    token_type: str
    amount: int
    points: int


class TelemetrySums(Protocol):
    """The sums of metrics: a cross-check of the ledger, never part of it."""

    def add_points(self, points: Sequence[MetricPoint], principal: Principal) -> int:
        """Add the points that are later than the last one of their series; returns how many those were."""
        ...

    def telemetry_sums(self, since_us: Micros, until_us: Micros) -> list[TelemetrySum]:
        """The sums of the UTC days in [since, until)."""
        ...


class LedgerSnapshot(Protocol):
    """The ledger as it was at one moment, for as long as the block lasts."""

    def entries(self, *, after: str = "", since_us: Micros | None = None, until_us: Micros | None = None, flag: str = "") -> Iterator[Entry]:
        """Entries in order of `entry_id`, after the given one; those that began in [since, until), that carry the flag.

        A flag that ends in a colon stands for all that begin with it.
        """
        ...

    def cells(self, grain: Grain) -> Iterator[tuple[Micros, int, Dims | None, tuple[int, ...]]]:
        """All cells of a rollup: bucket, id of the dimensions, the dimensions (None if they are not there), sums."""
        ...

    def names(self) -> Names:
        """The names of organizations, teams and keys."""
        ...

    def known(self, entry_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are in the ledger."""
        ...

    def dims(self, only: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, str, str, str, str]]:
        """What cells are told apart by: id of the dimensions, organization, team, key, model; `only` names dimensions and the values asked for."""
        ...

    def sums_of(
        self, spans: Sequence[tuple[Grain, Micros, Micros]], dims_ids: Sequence[int], *, buckets: bool = False
    ) -> Iterator[tuple[Micros, int, Sums]]:
        """Rollups of these dimensions over the spans, added up within each span by dimensions and, with `buckets`, by bucket (else 0)."""
        ...

    def uses(self, since_us: Micros, until_us: Micros, *, only: Mapping[str, Sequence[str]] | None = None) -> Iterator[Use]:
        """What each attempt and adjustment of the gateway's own used that began in [since, until); `only` names columns and accepted values."""
        ...

    def adjustments(self, made_since_us: Micros) -> list[Use]:
        """What adjustments of the gateway's own attempts changed that were made at that moment or later, whenever the attempts began."""
        ...

    def session_sums(self, since_us: Micros, until_us: Micros, sessions: Sequence[str], *, buckets: bool = False) -> list[Cell]:
        """Entries of the gateway's own that began in [since, until), by organization, team, key, model and session; with `buckets`, by quarter as well.

        Sessions are named by their id, or by the id of a key: then those of its requests that named no session.
        """
        ...


class LedgerStore(Protocol):
    """Append-only entries with their rollups; every write is one transaction, durable when it returns, and idempotent by entry id."""

    def checkpoints(self) -> dict[str, Checkpoint]:
        """The checkpoint of each journal writer that has been read."""
        ...

    def book(self, entries: Sequence[Entry], checkpoints: Sequence[Checkpoint] = ()) -> int:
        """Insert the entries that are new, add them to the rollups, move the checkpoints; returns how many were new."""
        ...

    def book_told(self, told: Sequence[Entry], *, now_us: Micros, progress: ImportProgress | None = None) -> Booked:
        """Book what other sources tell of calls, each call once whoever tells of it (`ledger/sources.py`), and store the progress with it.

        `progress` holds the counts of the file without this batch; what became of the batch is added to it.
        """
        ...

    def progress_of(self, source: str, places: Sequence[str] | None = None) -> list[ImportProgress]:
        """How far the files of a source have been booked; all of them, or those at the places asked for. An empty source means every one."""
        ...

    def keep_reports(self, reports: Sequence[ProviderReport]) -> int:
        """Keep pages of the provider's reports; returns how many were not there yet."""
        ...

    def reports(self, kind: str = "") -> list[ProviderReport]:
        """The kept pages of a kind (all if empty), in order of time."""
        ...

    def forget_checkpoints(self, writers: Sequence[str]) -> None:
        """Drop the checkpoints of writers whose journal is booked and gone."""
        ...

    def known(self, entry_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are in the ledger."""
        ...

    def entries_of(self, attempt_id: str) -> list[Entry]:
        """The entry of an attempt and its adjustments, in the order they were made; none if the attempt is not in the ledger."""
        ...

    def attempts_of(self, request_ids: Sequence[str]) -> list[Entry]:
        """The attempts that the gateway metered for these requests, without adjustments."""
        ...

    def page(self, *, after: str = "", limit: int = 1000) -> list[Entry]:
        """The next entries in order of `entry_id`, after the given one."""
        ...

    def extent(self) -> tuple[Micros, Micros] | None:
        """From the start of the first to the end of the last UTC day that has entries; None if there are none."""
        ...

    def sums(
        self,
        spans: Sequence[tuple[Grain, Micros, Micros]],
        *,
        by: Sequence[str] = (),
        only: Mapping[str, Sequence[str]] | None = None,
        buckets: bool = False,
    ) -> list[Cell]:
        """Rollups over the spans [from, until) at their grain, added up by dimensions (see `ledger.rollups.DIM_NAMES`) and, with `buckets`, by bucket."""
        ...

    def snapshot(self) -> AbstractContextManager[LedgerSnapshot]:
        """One consistent view of everything."""
        ...
