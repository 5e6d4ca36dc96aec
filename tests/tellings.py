"""Records of calls as other sources tell them, and what a ledger says on balance: shared by the tests of imports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from msgspec.structs import replace

from bookings import START_US, entry
from tokenweir.ledger.entries import Entry
from tokenweir.ledger.rollups import accumulate
from tokenweir.ledger.sources import CLAUDE_CODE_LOG, attempt_id_of, dedup_key
from tokenweir.storage.ledger import SqlLedger
from tokenweir.usage import Certainty, Usage

NOW_US = START_US + 86_400_000_000


def told(
    message: str = "", request: str = "", *, source: str = CLAUDE_CODE_LOG, own: str = "", output: int = 10, at_us: int = START_US, **fields
) -> Entry:
    """A record of another source; its request id is given the provider's form, unless it has a dash in it."""
    request = as_request_id(request)
    key = dedup_key(message_id=message, request_id=request, own_id=own)
    attempt_id = attempt_id_of(source, key, at_us)
    values = {
        "entry_id": attempt_id,
        "attempt_id": attempt_id,
        "started_at_us": at_us,
        "ended_at_us": at_us,
        "request_id": request,
        "upstream_request_id": "",
        "message_id": message,
        "organization_id": "org_1",
        "team_id": "team_1",
        "key_id": "person:ada",
        "usage": Usage(uncached_input=100, output=output),
        "cost_nanos": 1000 + output,
        "certainty": Certainty.PARTIAL,
        "source": source,
        "dedup_key": key,
        "flags": (),
        "tags": (),
        "raw_usage": b"",
    }
    return replace(entry(1), **values | fields)


def metered(number: int, *, message: str = "", request: str = "", upstream: str = "") -> Entry:
    """An attempt of the gateway."""
    begun = {"request_id": as_request_id(request) or f"req_tw_{number}"}
    return entry(number, begun=begun, message_id=message, upstream_request_id=as_request_id(upstream), cost_nanos=5_000 + number)


def as_request_id(name: str) -> str:
    """The name in the form of a request id, unless it has a dash in it."""
    return name if not name or name.startswith("req_") or "-" in name else f"req_{name}"


def net(entries: Iterable[Entry]) -> dict:
    """What stands, by time and place, whatever the history: sums of the cells without the kind of the entries."""
    sums: dict = defaultdict(lambda: [0] * 10)
    for (bucket_us, dims), amounts in accumulate(entries)[0].items():
        for index, amount in enumerate(amounts):
            sums[bucket_us, replace(dims, kind="")][index] += amount
    return {place: tuple(amounts) for place, amounts in sums.items() if any(amounts)}


def all_entries(store: SqlLedger) -> list[Entry]:
    """Everything in a ledger."""
    with store.snapshot() as snapshot:
        return list(snapshot.entries())


def stored_cells(store: SqlLedger) -> list[dict]:
    """Both rollups of a ledger, without cells of nothing but zeros."""
    with store.snapshot() as snapshot:
        return [{(at, dims): sums for at, _, dims, sums in snapshot.cells(grain) if any(sums)} for grain in ("15m", "day")]
