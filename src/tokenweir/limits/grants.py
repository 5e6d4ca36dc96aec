"""Grants: how much room a limit has once increases, credits and what was carried over are counted in.

An increase raises the amount while it lasts. A credit is burned by what is used beyond the amount and its increases, in the order of priority, then of
expiry, then of age; at the end of each cycle what is left of it is cut or raised to its bounds. What was used beyond all of that is overshoot; the next
credit that comes burns it first, and with `carry_over` the next cycle begins with it.

The rule it protects: balances are derived, never stored. They are a fold over phases, which are the stretches of time in which nothing but use changes:
cut where cycles begin and where grants begin, end or are voided. So the same grants and the same use always give the same room, whoever asks. A change
takes effect at its instant, and in the fold at the start of its quarter of an hour, because that is what the rollups can tell apart; grants are therefore
best given whole quarters. The amount is that of now, for past phases as well. Change with it: `limit.py`, `book.py`, `metering/seeding.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import msgspec

from tokenweir.limits.cycle import bounds
from tokenweir.limits.limit import AMOUNT_MAX, Cycle, Grant, Limit
from tokenweir.periods import SECOND_US, Micros, quarter_start

CARRIED_CYCLES_MAX = 60
"""How many cycles overshoot can be carried through: a debt that was never paid off in so many is forgiven."""
SETTLING_US: Micros = 3_600 * SECOND_US
"""For so long after a phase, requests that began in it may still be settled, and so change its use."""
LOOK_AGAIN_US: Micros = 60 * SECOND_US
"""How often the room is worked out anew while that is so."""
_FOREVER: Micros = 2**62

Phase: TypeAlias = tuple[Micros, Micros]
"""A stretch of time [since, until)."""


class Line(msgspec.Struct, frozen=True):
    """A part of the room; all parts sum to it (unless they sum to less than nothing)."""

    kind: Literal["amount", "increase", "credit", "carried_over"]
    units: int
    """What it contributes to this cycle: a credit with what was burned of it in this cycle; `carried_over` is negative."""
    grant_id: str = ""
    """The grant; empty for an increase that has ended and was used."""


class Allowance(msgspec.Struct, frozen=True):
    """The room of a limit for one bucket in the current cycle: the most that `used` and `held` of the cycle may come to."""

    room: int
    valid_until_us: Micros
    """When it has to be worked out again: a cycle or a grant begins or ends, or late use of an earlier phase is to be expected."""
    lines: tuple[Line, ...]


class Balance(msgspec.Struct, frozen=True):
    """How a credit stands."""

    grant: Grant
    left: int
    burned: int
    """Of it, in the current cycle."""


def active(grant: Grant, at_us: Micros) -> bool:
    """Whether the grant gives anything at that instant."""
    return grant.effective_at_us <= at_us < _end(grant)


def increases(grants: Iterable[Grant], at_us: Micros) -> int:
    """By how much the amount is raised at that instant."""
    return sum(grant.amount for grant in grants if grant.kind == "increase" and active(grant, at_us))


def increases_change_at(grants: Iterable[Grant], at_us: Micros) -> Micros | None:
    """When `increases` may next give another answer; None if never."""
    return _next_change([grant for grant in grants if grant.kind == "increase"], at_us)


def needs_use(limit: Limit, grants: Iterable[Grant]) -> bool:
    """Whether the room depends on what was used before; otherwise it is the amount with its increases."""
    return isinstance(limit.window, Cycle) and (limit.carry_over or any(grant.kind == "credit" for grant in grants))


def phases(limit: Limit, grants: Sequence[Grant], now_us: Micros) -> tuple[Phase, ...]:
    """The finished phases whose use `room` needs, oldest first and without gaps. The one that is under way is not among them: its use decides nothing.

    Give all grants of the limit, those that were voided too: what they burned stays covered.
    """
    starts = _timeline(limit, grants, now_us)
    return tuple(pairwise(starts))


def room(limit: Limit, grants: Sequence[Grant], used: Sequence[int], now_us: Micros) -> Allowance:
    """The room as of now; `used` is what was used in each of `phases`, in their order. Raises ValueError for another number of them."""
    fold = _Fold(limit, grants, used, now_us)
    lines = fold.lines()
    worked_out = max(0, min(AMOUNT_MAX, sum(line.units for line in lines)))
    change_us = min(bounds(_cycle(limit), now_us)[1], _next_change(grants, now_us) or _FOREVER)
    if fold.starts[1:] and now_us - fold.starts[-1] < SETTLING_US:
        change_us = min(change_us, now_us + LOOK_AGAIN_US)
    return Allowance(worked_out, change_us, lines)


def balances(limit: Limit, grants: Sequence[Grant], used: Sequence[int], used_since: int, now_us: Micros) -> tuple[Balance, ...]:
    """How the credits that are active now stand, in the order in which they burn; `used_since` is the use since the last of `phases` ended."""
    fold = _Fold(limit, grants, used, now_us)
    fold.burn(used_since)
    return tuple(Balance(grant, fold.left[grant.grant_id], fold.burned.get(grant.grant_id, 0)) for grant in fold.active)


class _Fold:
    """The state after all finished phases, at the beginning of the current one."""

    def __init__(self, limit: Limit, grants: Sequence[Grant], used: Sequence[int], now_us: Micros) -> None:
        self.limit = limit
        self.starts = _timeline(limit, grants, now_us)
        if len(used) != len(self.starts) - 1:
            raise ValueError(f"{len(self.starts) - 1} phases need their use, {len(used)} were given")
        self.left: dict[str, int] = {}
        self.burned: dict[str, int] = {}
        """In this cycle, also of credits that have ended since."""
        self.amount_used = 0
        """Of the amount and its increases, in this cycle."""
        self.overshoot = 0
        self.carried = 0
        """Overshoot with which this cycle began."""
        self.active: list[Grant] = []
        self.raises: list[Grant] = []
        self._credits = sorted((grant for grant in grants if grant.kind == "credit"), key=_burn_order)
        self._raises = [grant for grant in grants if grant.kind == "increase"]
        self._now_us = now_us
        cycle_ends_us = self.starts[0]
        for start_us, use in zip(self.starts, [*used, None], strict=True):
            if start_us >= cycle_ends_us:
                self._begin_cycle(start_us, first=start_us == self.starts[0])
                cycle_ends_us = bounds(_cycle(limit), start_us)[1]
            self._begin_phase(start_us)
            if use is not None:
                self.burn(use)

    def _begin_cycle(self, start_us: Micros, *, first: bool) -> None:
        if not first:
            self.left = {
                grant.grant_id: _rolled_over(grant, self.left[grant.grant_id])
                for grant in self._credits
                if grant.grant_id in self.left and self._spans(grant, start_us)
            }
        self.carried = self.overshoot = self.overshoot if self.limit.carry_over else 0
        self.amount_used = 0
        self.burned = {}

    def _begin_phase(self, start_us: Micros) -> None:
        self.active = [grant for grant in self._credits if self._spans(grant, start_us)]
        self.left = {grant.grant_id: self.left.get(grant.grant_id, grant.amount) for grant in self.active}
        self.raises = [grant for grant in self._raises if self._spans(grant, start_us)]

    def burn(self, use: int) -> None:
        """Count what was used in the phase, after what was overshot before it."""
        rest = self.overshoot + max(0, use)
        taken = min(rest, max(0, self._amount() - self.amount_used))
        self.amount_used += taken
        rest -= taken
        for grant in self.active:
            burned = min(rest, self.left[grant.grant_id])
            if burned:
                self.left[grant.grant_id] -= burned
                self.burned[grant.grant_id] = self.burned.get(grant.grant_id, 0) + burned
                rest -= burned
        self.overshoot = rest

    def lines(self) -> tuple[Line, ...]:
        """What makes up the room: what may still be used, what has been used within bounds, less what was carried over."""
        lines = [Line("amount", self.limit.amount)]
        lines += [Line("increase", grant.amount, grant.grant_id) for grant in self.raises]
        if (ended := self.amount_used - self._amount()) > 0:
            lines.append(Line("increase", ended))
        for grant in self._credits:
            units = self.left.get(grant.grant_id, 0) + self.burned.get(grant.grant_id, 0)
            if units:
                lines.append(Line("credit", units, grant.grant_id))
        if self.carried:
            lines.append(Line("carried_over", -self.carried))
        return tuple(lines)

    def _amount(self) -> int:
        return self.limit.amount + sum(grant.amount for grant in self.raises)

    def _spans(self, grant: Grant, start_us: Micros) -> bool:
        since_us, until_us = _span(grant, self._now_us)
        return since_us <= start_us < until_us


def _timeline(limit: Limit, grants: Sequence[Grant], now_us: Micros) -> list[Micros]:
    """The starts of all phases that matter, the last of which is under way."""
    cycle = _cycle(limit)
    first_us = _first_cycle(limit, cycle, grants, now_us)
    if first_us is None:
        return [quarter_start(now_us)]
    starts = {first_us}
    until_us = bounds(cycle, first_us)[1]
    while until_us <= now_us:
        starts.add(until_us)
        until_us = bounds(cycle, until_us)[1]
    for grant in grants:
        starts.update(at_us for at_us in _span(grant, now_us) if first_us < at_us <= now_us)
    return sorted(starts)


def _first_cycle(limit: Limit, cycle: Cycle, grants: Sequence[Grant], now_us: Micros) -> Micros | None:
    """Start of the first cycle whose use still matters; None if no past use does."""
    spans = [_span(grant, now_us) for grant in grants if grant.kind == "credit"]
    this_us = bounds(cycle, now_us)[0]
    since_us = _carried_since(limit, cycle, this_us) if limit.carry_over else this_us
    while True:
        # A credit that gave anything in this time may have been spared by one that gave before it.
        begun_us = min((begin_us for begin_us, end_us in spans if begin_us < end_us and end_us > since_us), default=None)
        if begun_us is None:
            return since_us if since_us < this_us else None
        if begun_us >= since_us:
            return since_us
        since_us = bounds(cycle, begun_us)[0]


def _carried_since(limit: Limit, cycle: Cycle, this_us: Micros) -> Micros:
    since_us = this_us
    for _ in range(CARRIED_CYCLES_MAX):
        if since_us <= limit.created_at_us:
            break
        since_us = bounds(cycle, since_us - 1)[0]
    return since_us


def _span(grant: Grant, now_us: Micros) -> Phase:
    """From when to when the grant counts in the fold: what has not happened yet is not known to it."""
    since_us = quarter_start(grant.effective_at_us) if grant.effective_at_us <= now_us else _FOREVER
    end_us = _end(grant)
    return since_us, (quarter_start(end_us) if end_us <= now_us else _FOREVER)


def _end(grant: Grant) -> Micros:
    ends = [at_us for at_us in (grant.expires_at_us, grant.voided_at_us) if at_us is not None]
    return min(ends, default=_FOREVER)


def _next_change(grants: Iterable[Grant], at_us: Micros) -> Micros | None:
    changes = [
        change_us
        for grant in grants
        if grant.effective_at_us < _end(grant)
        for change_us in (grant.effective_at_us, _end(grant))
        if at_us < change_us < _FOREVER
    ]
    return min(changes, default=None)


def _burn_order(grant: Grant) -> tuple[int, Micros, Micros, str]:
    return grant.priority, _FOREVER if grant.expires_at_us is None else grant.expires_at_us, grant.created_at_us, grant.grant_id


def _rolled_over(grant: Grant, left: int) -> int:
    raised = max(left, grant.rollover_min)
    return raised if grant.rollover_max is None else min(raised, grant.rollover_max)


def _cycle(limit: Limit) -> Cycle:
    if not isinstance(limit.window, Cycle):
        raise ValueError(f"limit {limit.limit_id} has no calendar window, so nothing but increases can change its room")  # noqa: TRY004 - it is a value
    return limit.window
