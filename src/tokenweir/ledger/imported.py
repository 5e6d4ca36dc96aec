"""Imported calls: the one shape in which every other source tells of a call, and how it becomes an entry.

The rule it protects: an imported call is priced by our own rate card from its own token counts, whatever another program thinks it cost; it says that it
is an estimate unless its source knows better; and it is told apart by the provider's own ids where it has them. Every importer ends in `ImportedCall`,
so what is true of one is true of all. Change with it: `sources.py` (which record stands), docs/IMPORTS.md.
"""

from __future__ import annotations

import hashlib

import msgspec

from tokenweir.ledger.adjustments import without_unpriced
from tokenweir.ledger.entries import KIND_ATTEMPT, Entry
from tokenweir.ledger.sources import FLAG_ESTIMATED, FLAG_SIDECHAIN, attempt_id_of, dedup_key
from tokenweir.periods import Micros
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import cost_nanos
from tokenweir.usage import Certainty, Metered

TEXT_CHARS_MAX = 200
"""Names and ids from outside are cut to this."""
PERSON_KEY = "person:"
"""Imported calls have no key of ours; who made them stands in its place: `person:ada@example.org`."""
PROJECT_TAG = "project:"


class Account(msgspec.Struct, frozen=True):
    """Whom a call is booked to."""

    organization_id: str
    team_id: str
    key_id: str
    """A key of ours, or `person:NAME`."""


class ImportedCall(msgspec.Struct, frozen=True):
    """One call to the Claude API, as a source other than the gateway tells of it."""

    source: str
    """One of `ledger.sources.SOURCES`."""
    started_at_us: Micros
    metered: Metered
    message_id: str = ""
    """The provider's `msg_…`."""
    request_id: str = ""
    """The `request-id` that the client got: the provider's, or that of a gateway of ours in between."""
    upstream_request_id: str = ""
    own_id: str = ""
    """The source's own id of the row, for calls of which it knows no id of the provider."""
    ended_at_us: Micros = 0
    """0: not said."""
    model_requested: str = ""
    certainty: Certainty = Certainty.PARTIAL
    batch: bool = False
    sidechain: bool = False
    stream: bool = False
    stop_reason: str = ""
    session_id: str = ""
    agent_id: str = ""
    parent_agent_id: str = ""
    client: str = ""
    project: str = ""
    person: str = ""
    """Who made it, if the source says; in place of the account's own key."""
    tags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    raw_usage: bytes = b""
    """The provider's usage object, if the source kept it."""


def told_entry(call: ImportedCall, account: Account, card: RateCard) -> Entry:
    """The entry of an imported call; raises ValueError with a sentence if nothing tells it apart."""
    message_id, request_id, upstream_request_id = map(_id, (call.message_id, call.request_id, call.upstream_request_id))
    key = dedup_key(message_id=message_id, request_id=request_id or upstream_request_id, own_id=_id(call.own_id))
    nanos, unpriced = cost_nanos(card, call.metered, at_us=call.started_at_us, batch=call.batch)
    metered = call.metered
    flags = [*metered.flags, *call.flags]
    if call.certainty is not Certainty.EXACT:
        flags.append(FLAG_ESTIMATED)
    if call.sidechain:
        flags.append(FLAG_SIDECHAIN)
    attempt_id = attempt_id_of(call.source, key, call.started_at_us)
    tags = (f"{PROJECT_TAG}{_short(call.project)}", *call.tags) if call.project else call.tags
    return Entry(
        entry_id=attempt_id,
        attempt_id=attempt_id,
        kind=KIND_ATTEMPT,
        started_at_us=call.started_at_us,
        ended_at_us=max(call.started_at_us, call.ended_at_us),
        request_id=request_id,
        upstream_request_id=upstream_request_id,
        message_id=message_id,
        organization_id=account.organization_id,
        team_id=account.team_id,
        key_id=person_key(call.person) if call.person else account.key_id,
        model_requested=_short(call.model_requested or metered.model),
        model=_short(metered.model),
        stream=call.stream,
        status=200,
        certainty=call.certainty,
        usage=metered.usage,
        cost_nanos=nanos,
        ceiling_nanos=nanos,
        card_version=card.version,
        service_tier="batch" if call.batch else metered.service_tier,
        speed=metered.speed,
        inference_geo=metered.inference_geo,
        stop_reason=_short(call.stop_reason),
        session_id=_short(call.session_id),
        agent_id=_short(call.agent_id),
        parent_agent_id=_short(call.parent_agent_id),
        client=_short(call.client),
        tags=tuple(dict.fromkeys(map(_short, tags))),
        flags=without_unpriced(tuple(dict.fromkeys(flags)), unpriced=unpriced),
        raw_usage=call.raw_usage,
        source=call.source,
        dedup_key=key,
    )


def person_key(person: str) -> str:
    """What stands in place of a key for the calls of a person."""
    return f"{PERSON_KEY}{_short(person)}"


def _id(text: str) -> str:
    """An id as it is, or what is left of one that is too long, still told apart from every other."""
    if len(text) <= TEXT_CHARS_MAX and text.isprintable():
        return text
    return f"{_short(text[:160])}~{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def _short(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX and text.isprintable() else "".join(c if c.isprintable() else "�" for c in text[:TEXT_CHARS_MAX])
