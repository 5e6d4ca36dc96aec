"""The ports of the ledger and of what is kept beside it: what bookkeeping writes, and what every figure is read from.

Adapters live in `storage/` and are named by `app.py` alone. They are synchronous: the worker and the command line call them directly, the gateway
calls them in a thread and never on its event loop. A database that does not answer raises `StoreUnavailable`. The other ports: `ports.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from tokenweir.ledger.entries import Entry
from tokenweir.ledger.rollups import Dims, Grain, Sums
from tokenweir.ledger.sources import Booked
from tokenweir.periods import Micros
from tokenweir.principals import Principal
from tokenweir.wire.telemetry import MetricPoint


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
