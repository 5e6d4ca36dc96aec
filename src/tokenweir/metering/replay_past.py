"""What was used before a replay begins, as the rollups have it: for the counters of cycles that were under way, and for what was carried over.

The rule it protects: the same sums that the gateway would be told when it is started, by the same rules of whose use of which model a limit counts.
Rollups know organization, team, key and model; owners and tags are those that the directory has now. Use of a session is not in them: it is replayed
from its entries. Change with it: `spend.py`, `seeding.py`, `limit_replay.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenweir.ledger.sources import GATEWAY
from tokenweir.ledger_ports import LedgerStore
from tokenweir.limits.book import seat_of
from tokenweir.limits.limit import Limit
from tokenweir.metering.seeding import units
from tokenweir.metering.spend import Query, Row, spend
from tokenweir.periods import Micros
from tokenweir.principals import Principal


class PastUse:
    """Reads what was used of limits in whole quarters of an hour; each range is read once."""

    def __init__(self, store: LedgerStore, *, covers: Callable[[Limit, str], bool], principal: Callable[[str, str, str], Principal]) -> None:
        """`principal` gives the caller by its ids: organization, team and key."""
        self._store = store
        self._covers = covers
        self._principal = principal
        self._rows: dict[tuple[Micros, Micros], tuple[Row, ...]] = {}
        self._by_seat: dict[tuple[str, Micros, Micros], Mapping[str, int]] = {}

    def used(self, limit: Limit, seat: str, since_us: Micros, until_us: Micros) -> int:
        """Units that one seat used in [since, until), by when the attempts began."""
        if until_us <= since_us:
            return 0
        place = limit.limit_id, since_us, until_us
        by_seat = self._by_seat.get(place)
        if by_seat is None:
            by_seat = self._by_seat[place] = self._seats(limit, since_us, until_us)
        return by_seat.get(seat, 0)

    def _seats(self, limit: Limit, since_us: Micros, until_us: Micros) -> dict[str, int]:
        rows = self._rows.get((since_us, until_us))
        if rows is None:
            query = Query(since_us=since_us, until_us=until_us, by=("organization", "team", "key", "model"), only={"source": (GATEWAY,)})
            rows = self._rows[since_us, until_us] = spend(self._store, query).rows
        seats: dict[str, int] = {}
        for row in rows:
            organization_id, team_id, key_id, model = row.group
            who = self._principal(organization_id, team_id, key_id)
            if in_scope(limit, who, "") and self._covers(limit, model):
                seat = seat_of(limit.scope, who, "")
                seats[seat] = seats.get(seat, 0) + units(limit.resource, row.sums)
        return seats


def in_scope(limit: Limit, who: Principal, session: str) -> bool:
    """Whether the limit is on requests of that caller."""
    scope = limit.scope
    return (
        scope.organization_id == who.organization_id
        and scope.team_id in ("", who.team_id)
        and scope.key_id in ("", who.key_id)
        and scope.user in ("", who.owner)
        and scope.session in ("", session)
        and (not scope.tag or scope.tag in who.tags)
    )


def by_session(limit: Limit) -> bool:
    """Whether its use cannot be read from the rollups."""
    return bool(limit.scope.session) or limit.scope.per == "session"
