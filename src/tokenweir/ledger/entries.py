"""Entries: the records of the journal and the ledger, and how the first become the second.

The gateway journals an `Intent` before the first byte goes upstream and a `Settlement` before the last byte goes down; the worker joins the two
into one `Entry` whose primary key is the attempt. An intent whose writer died without settling becomes an entry at its ceiling, flagged
`unknown`. Entries are never changed: what is learned later is a new entry of kind `adjustment`. Journal records are encoded as MessagePack arrays:
append fields at the end with a default, never reorder. Change together with `storage/schema.py` (columns) and `metering/journal.py` (frames).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.usage import Certainty, Usage

KIND_ATTEMPT = "attempt"
KIND_ADJUSTMENT = "adjustment"

FLAG_UNKNOWN = "unknown"
"""The outcome was never learned (crash between intent and settlement); booked at the ceiling."""
FLAG_UNPRICED = "unpriced"
"""No rate was known for the model; booked at the stated conservative rate until re-rated."""

FLAG_REVERSAL = "reversal"
"""An adjustment that takes back all that was booked for the attempt so far, from the cell it was booked in."""
FLAG_REBOOKING = "rebooking"
"""An adjustment that books the attempt anew, after its reversal: another model, certainty or state of pricing, hence another cell."""


class Intent(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """An attempt is about to be sent: who, what, and the most it can cost."""

    attempt_id: str
    """32 hex digits, time-ordered, minted by us: the primary key of the entry."""
    request_id: str
    """The `request-id` that the client gets for the whole request."""
    attempt_no: int
    """1 for the first attempt of a request."""
    started_at_us: Micros
    organization_id: str
    team_id: str
    key_id: str
    model_requested: str
    stream: bool
    ceiling: Usage
    ceiling_nanos: Nanos
    card_version: str
    session_id: str = ""
    agent_id: str = ""
    parent_agent_id: str = ""
    client: str = ""
    """The client's user agent, cut to 200 characters."""
    client_retry: int = 0
    """`x-stainless-retry-count`: how often the SDK says it has tried before."""
    tags: tuple[str, ...] = ()


class Settlement(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """How an attempt ended: what was used, what it costs, and how sure that is."""

    attempt_id: str
    ended_at_us: Micros
    status: int
    """HTTP status of the provider's answer; 0 if none came."""
    certainty: Certainty
    usage: Usage
    cost_nanos: Nanos
    model: str
    """The model that answered; the one asked for if unknown."""
    upstream_request_id: str = ""
    message_id: str = ""
    service_tier: str = ""
    speed: str = ""
    inference_geo: str = ""
    stop_reason: str = ""
    error_type: str = ""
    cut: str = ""
    """Who ended it early: `client`, `upstream`, `shutdown`, `limit` (no more room), `gateway` (it failed); empty if nobody did."""
    first_byte_us: int = 0
    """Time from sending to the first byte of the answer; 0 if none came."""
    flags: tuple[str, ...] = ()
    raw_usage: bytes = b""
    """The provider's usage object as it came (the merged one of a stream); empty if none was seen."""


Record: TypeAlias = Intent | Settlement


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of the ledger. Token counts and cost of an adjustment are differences and may be negative."""

    entry_id: str
    """Equal to the attempt's id for an attempt; an id of its own for an adjustment."""
    attempt_id: str
    kind: str
    started_at_us: Micros
    ended_at_us: Micros
    request_id: str
    upstream_request_id: str
    message_id: str
    organization_id: str
    team_id: str
    key_id: str
    model_requested: str
    model: str
    stream: bool
    status: int
    certainty: Certainty
    usage: Usage
    cost_nanos: Nanos
    ceiling_nanos: Nanos
    card_version: str
    service_tier: str = ""
    speed: str = ""
    inference_geo: str = ""
    stop_reason: str = ""
    error_type: str = ""
    cut: str = ""
    first_byte_us: int = 0
    attempt_no: int = 1
    client_retry: int = 0
    session_id: str = ""
    agent_id: str = ""
    parent_agent_id: str = ""
    client: str = ""
    tags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    raw_usage: bytes = b""
    source: str = "gateway"
    reason: str = ""
    """Why an adjustment was made: `rerate`, `superseded: SOURCE`, `grown`, `operator: …`."""
    dedup_key: str = ""
    """What tells this call apart within its source (`ledger/sources.py`); empty for the gateway's own, which are told apart by the attempt."""


def settled_entry(intent: Intent, settlement: Settlement) -> Entry:
    """The entry of an attempt whose end is known."""
    return Entry(
        entry_id=intent.attempt_id,
        attempt_id=intent.attempt_id,
        kind=KIND_ATTEMPT,
        started_at_us=intent.started_at_us,
        ended_at_us=settlement.ended_at_us,
        request_id=intent.request_id,
        upstream_request_id=settlement.upstream_request_id,
        message_id=settlement.message_id,
        organization_id=intent.organization_id,
        team_id=intent.team_id,
        key_id=intent.key_id,
        model_requested=intent.model_requested,
        model=settlement.model,
        stream=intent.stream,
        status=settlement.status,
        certainty=settlement.certainty,
        usage=settlement.usage,
        cost_nanos=settlement.cost_nanos,
        ceiling_nanos=intent.ceiling_nanos,
        card_version=intent.card_version,
        service_tier=settlement.service_tier,
        speed=settlement.speed,
        inference_geo=settlement.inference_geo,
        stop_reason=settlement.stop_reason,
        error_type=settlement.error_type,
        cut=settlement.cut,
        first_byte_us=settlement.first_byte_us,
        attempt_no=intent.attempt_no,
        client_retry=intent.client_retry,
        session_id=intent.session_id,
        agent_id=intent.agent_id,
        parent_agent_id=intent.parent_agent_id,
        client=intent.client,
        tags=intent.tags,
        flags=settlement.flags,
        raw_usage=settlement.raw_usage,
    )


def unknown_entry(intent: Intent, *, now_us: Micros) -> Entry:
    """The entry of an attempt whose gateway died before it could settle: the ceiling, flagged."""
    return settled_entry(
        intent,
        Settlement(
            attempt_id=intent.attempt_id,
            ended_at_us=now_us,
            status=0,
            certainty=Certainty.CEILING,
            usage=intent.ceiling,
            cost_nanos=intent.ceiling_nanos,
            model=intent.model_requested,
            flags=(FLAG_UNKNOWN,),
        ),
    )
