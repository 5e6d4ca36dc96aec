"""Sources: who tells of a call, and whose record stands when several do.

The rules it protects: one call is booked once, whoever tells of it and in whatever order. Records belong to one call when they share a name of it (message
id or request id), also by way of a third. Of all records of a call the one of the best source stands, among equals the fullest; when it comes late, what
stood is reversed by an adjusting entry and it is booked; a row that grew is reversed and booked anew. Nothing is ever updated. What the gateway saw itself
is never taken back. Change with it: `adjustments.py`, `storage/claims.py` (which loads and stores what `Calls` decides on), docs/IMPORTS.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec.structs import astuple, replace

from tokenweir.ledger.adjustments import Standing, book_anew, standing, take_back, taken_back
from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNPRICED, KIND_ADJUSTMENT, KIND_ATTEMPT, Entry
from tokenweir.periods import Micros

GATEWAY: Final = "gateway"
CLAUDE_CODE_OTEL: Final = "claude_code_otel"
CLAUDE_CODE_LOG: Final = "claude_code_log"
LITELLM: Final = "litellm"
HELICONE: Final = "helicone"
LANGFUSE: Final = "langfuse"
GENERIC: Final = "import"

SOURCES: Final = (GATEWAY, CLAUDE_CODE_OTEL, CLAUDE_CODE_LOG, LITELLM, HELICONE, LANGFUSE, GENERIC)
"""All sources, the most trusted first: the meter on the wire, what the client reports as it calls, what it writes to its log, and what others exported."""
RANK: Final[Mapping[str, int]] = {source: 2 * (len(SOURCES) - place) for place, source in enumerate(SOURCES)}
_STATED_BY_OPERATOR: Final = RANK[GATEWAY] - 1

REQUEST_ID: Final = "req_"
"""How request ids of the provider and of our gateway begin."""
FLAG_ESTIMATED: Final = "estimated"
"""The source does not claim to be what the provider bills."""
FLAG_SIDECHAIN: Final = "sidechain"
"""The row stood in the transcript of a subagent, whose counts may be those of an answer that was not complete yet."""
REASON_GROWN: Final = "grown"
REASON_SUPERSEDED: Final = "superseded"
OPERATOR: Final = "operator"

_OURS: Final = (FLAG_REVERSAL, FLAG_REBOOKING, FLAG_UNPRICED)
"""Flags that say something of our books, not of the call."""

Outcome: TypeAlias = Literal["new", "grown", "replaced", "matched"]
"""`new`: a call not known before. `grown`: a fuller row of a known one. `replaced`: it stands in place of a worse record. `matched`: it changed nothing."""


def names_of(entry: Entry) -> tuple[str, ...]:
    """What a call is known by in every source; the source's own id only where those are missing.

    A request id counts if it has the provider's form, which ours has too: what another proxy puts in its place need not be different for each call.
    """
    names = [f"message:{entry.message_id}"] if entry.message_id else []
    names += [f"request:{name}" for name in dict.fromkeys((entry.request_id, entry.upstream_request_id)) if name.startswith(REQUEST_ID)]
    return tuple(names) or (f"row:{entry.source}:{entry.dedup_key}",)


def dedup_key(*, message_id: str, request_id: str, own_id: str) -> str:
    """What tells a call apart within its source; raises ValueError if nothing does, because then it could be booked twice."""
    if message_id:
        return f"message:{message_id}"
    if request_id:
        return f"request:{request_id}"
    if own_id:
        return own_id
    raise ValueError("has neither message id nor request id nor an id of its own, so it could be booked twice")


def attempt_id_of(source: str, key: str, at_us: Micros) -> str:
    """The id of an imported call: its time and what tells it apart, so that it sorts among the attempts of its time."""
    digest = hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=10).hexdigest()
    return f"{max(0, at_us) // 1_000:012x}{digest}"[:32]


def fullness(entry: Entry) -> tuple[object, ...]:
    """What decides between two rows of one call from sources of the same rank: the greater stands.

    The main transcript before a sub-agent's, then more tokens, then a stated end, then a stated speed, then the earlier one, because copies come later:
    the same as `wire.transcripts.rank`. Two rows that differ in anything that is booked never come out equal, so that the order of arrival decides nothing.
    """
    return (
        FLAG_SIDECHAIN not in entry.flags,
        entry.usage.total,
        bool(entry.stop_reason),
        bool(entry.speed),
        -entry.started_at_us,
        astuple(entry.usage),
        entry.model,
        (entry.stop_reason, entry.speed, entry.service_tier, entry.inference_geo),
        (entry.session_id, entry.agent_id, entry.parent_agent_id, entry.client, entry.model_requested),
        (entry.message_id, entry.request_id, entry.upstream_request_id),
        entry.tags,
        tuple(sorted(flag for flag in entry.flags if flag not in _OURS)),
        entry.certainty.value,
        entry.raw_usage,
    )


class Calls:
    """What the ledger knows of the calls that a batch names, and what it must learn from it. Take the records one by one, then read the results."""

    def __init__(self, names: Mapping[str, str], attempts: Iterable[Sequence[Entry]], *, now_us: Micros) -> None:
        self.entries: list[Entry] = []
        """What is to be booked, in this order."""
        self.merged: dict[str, str] = {}
        """Attempts whose names now belong to another one. Ask `stands_for` for the last of a chain."""
        self._names = dict(names)
        self._learned: dict[str, str] = {}
        self._now_us = now_us
        self._attempts: dict[str, list[Entry]] = {}
        self._own: dict[tuple[str, str], str] = {}
        for entries in attempts:
            self._remember(entries[0], list(entries))

    @property
    def names(self) -> dict[str, str]:
        """The names that were learned, each with the attempt that stands for the call."""
        return {name: self.stands_for(attempt_id) for name, attempt_id in self._learned.items()}

    def stands_for(self, attempt_id: str) -> str:
        """The attempt that stands for the call of this one."""
        while attempt_id in self.merged:
            attempt_id = self.merged[attempt_id]
        return attempt_id

    def take(self, told: Entry) -> Outcome:
        """A record of a call from any source but the gateway."""
        names = names_of(told)
        known = self._standing_for(names)
        best = max(known, key=self._order, default=None)
        own = self._own.get((told.source, told.dedup_key))
        if best is not None and self._order(best) >= (RANK.get(told.source, 0), fullness(told)):
            self._give_way([attempt_id for attempt_id in known if attempt_id != best], best)
            self._learn(names, best)
            return "matched"
        if own is None:
            stands = told.attempt_id
            self._remember(told, [told])
            self.entries.append(told)
        else:
            stands = own
            self._rebook(own, told)
        self.merged.pop(stands, None)
        self._give_way([attempt_id for attempt_id in known if attempt_id != stands], stands)
        self._learn(names, stands)
        if not known:
            return "new"
        return "grown" if known == [stands] else "replaced"

    def take_gateway(self, seen: Entry) -> None:
        """An attempt that the gateway metered and that is being booked: what others told of it before is taken back."""
        known = [attempt_id for attempt_id in self._standing_for(names_of(seen)) if not self._is_gateway(attempt_id)]
        self._remember(seen, [seen])
        self._give_way(known, seen.attempt_id)

    # What stands.

    def _standing_for(self, names: Sequence[str]) -> list[str]:
        known = dict.fromkeys(self.stands_for(self._names[name]) for name in names if name in self._names)
        return [attempt_id for attempt_id in known if attempt_id in self._attempts]

    def _order(self, attempt_id: str) -> tuple[int, tuple[object, ...]]:
        entries = self._attempts[attempt_id]
        if self._is_gateway(attempt_id):
            return RANK[GATEWAY], ()
        if any(entry.kind == KIND_ADJUSTMENT and entry.reason.startswith(OPERATOR) for entry in entries):
            return _STATED_BY_OPERATOR, ()  # what an operator stated is not undone by reading the same file again
        now = standing(entries)
        return RANK.get(now.latest.source, 0), fullness(replace(now.latest, usage=now.usage))

    def _is_gateway(self, attempt_id: str) -> bool:
        return self._attempts[attempt_id][0].source == GATEWAY

    def _remember(self, first: Entry, entries: list[Entry]) -> None:
        self._attempts[first.attempt_id] = entries
        if first.dedup_key:
            self._own[first.source, first.dedup_key] = first.attempt_id

    def _learn(self, names: Sequence[str], attempt_id: str) -> None:
        for name in names:
            if self._names.get(name) != attempt_id:
                self._names[name] = self._learned[name] = attempt_id

    # Corrections.

    def _give_way(self, losers: Sequence[str], winner: str) -> None:
        for loser in losers:
            if self._is_gateway(loser):
                continue
            entries = self._attempts[loser]
            if not taken_back(entries):
                source = self._attempts[winner][0].source
                self._correct(loser, (take_back(self._now(loser), reason=f"{REASON_SUPERSEDED}: {source}", now_us=self._now_us),))
            self.merged[loser] = winner

    def _rebook(self, attempt_id: str, told: Entry) -> None:
        entries = self._attempts[attempt_id]
        first = entries[0]
        at_home = replace(told, organization_id=first.organization_id, team_id=first.team_id, key_id=first.key_id)
        made = book_anew(self._now(attempt_id), at_home, reversed_already=taken_back(entries), reason=REASON_GROWN, now_us=self._now_us)
        self._correct(attempt_id, made)

    def _now(self, attempt_id: str) -> Standing:
        return standing(self._attempts[attempt_id])

    def _correct(self, attempt_id: str, made: Sequence[Entry]) -> None:
        self._attempts[attempt_id] += made
        self.entries += made


def fullest(told: Iterable[Entry]) -> list[Entry]:
    """One record per call of a source, the fullest, in the order of their first rows: what a batch needs to say, without the growing in between.

    Rows that know the call by different names are all kept: each may tie it to another record.
    """
    best: dict[tuple[str, str, tuple[str, ...]], Entry] = {}
    for entry in told:
        if entry.kind != KIND_ATTEMPT:
            raise ValueError("a record of another source is an attempt")
        place = entry.source, entry.dedup_key, names_of(entry)
        if place not in best or fullness(entry) > fullness(best[place]):
            best[place] = entry
    return list(best.values())


class Booked(msgspec.Struct, frozen=True):
    """What became of a batch of records."""

    new: int = 0
    grown: int = 0
    replaced: int = 0
    matched: int = 0

    def __add__(self, other: Booked) -> Booked:
        return Booked(self.new + other.new, self.grown + other.grown, self.replaced + other.replaced, self.matched + other.matched)
