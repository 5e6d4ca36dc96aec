"""Buckets and holds, in memory: the whole arithmetic of limits, synchronous, with the time as an argument.

The rule it protects: `used + held + asked <= room` for every enforced bucket of a request at once, or nothing is taken of any. What is held is dropped
at settlement and the real use is added, so nothing flows back that was not held, and with nothing in flight every `held` is exactly zero.

How each kind ends its use:

- COUNTER. `used` grows at settlement, or at once if `taken`. It may shrink by a correction, also below zero: a request that was counted and never
  sent is used -1 besides, an adjustment of the ledger may take back what another counter was charged, and a counter held at zero would disagree with
  the ledger from then on.
- LEVEL. What is used is added when it becomes known (at settlement, or at once if `taken`), and leaks from then on. A negative use is ignored: what
  was taken has been leaking since, so how much of it is still there to give back cannot be said exactly, and giving back what already leaked would
  break the bound in `gcra.py`. It is gone after a period anyway.
- GAUGE. Only held.

Every operation is idempotent by its id. A bucket that is not known, and not `fresh`, is `Unseeded`: the ledger has to be asked (a GAUGE never: nothing
of it outlives a request). Buckets that cannot matter any more are forgotten two at a time whenever a new one is made, so memory follows what is in use
and no operation ever pays for many. Change with it: `bucket.py`, `gcra.py`, and `storage/limit_valkey.py`, which does the same in a script.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tokenweir.limits.bucket import NEVER, Bucket, Hold, Kind, Outcome, Refused, Reserved, Seed, Shortage, Standing, Unseeded
from tokenweir.limits.gcra import leak, rescale, wait_us, whole_units
from tokenweir.limits.late_use import LateUse
from tokenweir.periods import DAY_US, SECOND_US, Micros

KEPT_US: Final = 2 * DAY_US
"""How long a counter is kept after its cycle has ended: settlements and adjustments still arrive."""
IDLE_US: Final = 600 * SECOND_US
"""How long an empty level is kept, so that a key that is used now and then is not asked of the ledger every time."""
CHARGES_KEPT: Final = 65_536
"""How many charge ids a counter remembers at least half of; what is told twice is told twice within a short time."""

_COUNTER, _LEVEL, _GAUGE = Kind.COUNTER, Kind.LEVEL, Kind.GAUGE


class _State:
    """What is known of one bucket."""

    __slots__ = ("at_us", "charges", "ends_us", "gone", "held", "kind", "period_us", "refill", "used")

    def __init__(self, bucket: Bucket, used: int, at_us: Micros) -> None:
        self.kind = bucket.kind
        level = bucket.kind is _LEVEL
        self.period_us = bucket.period_us if level else 0
        """0 unless it is a level."""
        self.refill = bucket.refill
        self.used = max(used, 0) * bucket.period_us if level else used
        """Units; for a level, units x period_us."""
        self.held = 0
        self.at_us = at_us
        """When `used` of a level was true."""
        self.ends_us = bucket.ends_us
        self.charges: dict[str, None] | None = None
        self.gone = False
        """Forgotten; a hold that still knows it brings it back."""


_Held: TypeAlias = tuple[tuple[Bucket, ...], list[_State], list[int]]
"""What a request holds: its buckets, their states, and the units held of each."""


class Buckets:
    """All buckets of one process. The buckets of one call are distinct; units asked are never negative."""

    def __init__(self, owner: str = "") -> None:
        self.owner = owner
        """Whose holds these are: the journal writer of this process."""
        self._states: dict[str, _State] = {}
        self._turns: deque[str] = deque()
        """Ids of all states, in the order in which they are looked at to be forgotten."""
        self._holds: dict[str, _Held] = {}
        self._callbacks: list[Callable[[str], None]] = []
        self._late = LateUse()

    def __len__(self) -> int:
        return len(self._states)

    def when_room(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the id of a bucket after something that was held or used of it was given back."""
        self._callbacks.append(callback)

    def reserve(self, hold_id: str, buckets: Sequence[Bucket], units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Take `units[i]` of each bucket, held under `hold_id`, or nothing. A hold that is there already answers as it stands and changes nothing."""
        if hold_id in self._holds:
            return self._again(buckets, now_us)
        known = self._states
        states: list[_State] = []
        made: list[tuple[str, _State]] | None = None
        unknown: list[int] | None = None
        fits = True
        for bucket, asked in zip(buckets, units, strict=True):
            state = known.get(bucket.bucket_id)
            if state is None or state.kind is not bucket.kind:
                if not bucket.fresh and bucket.kind is not _GAUGE:
                    unknown = [*(unknown or ()), len(states)]
                state = _State(bucket, 0, now_us)
                made = [*(made or ()), (bucket.bucket_id, state)]
            period_us = state.period_us
            if period_us:
                state.used, state.at_us = leak(state.used, state.at_us, refill=state.refill, period_us=period_us, now_us=now_us)
                if bucket.refill != state.refill or bucket.period_us != period_us:
                    _retune(state, bucket)
                    period_us = state.period_us
                if state.used > (bucket.room - state.held - asked) * period_us:
                    fits = False
            elif state.used + state.held + asked > bucket.room:
                fits = False
            states.append(state)
        if unknown is not None:
            return Unseeded(tuple(unknown))
        over: tuple[int, ...] = ()
        if not fits:
            shortages, over = _short(buckets, states, units, now_us)
            if shortages:
                return Refused(shortages)
        return self._take(hold_id, buckets, states, units, over, made, now_us)

    def _take(
        self,
        hold_id: str,
        buckets: Sequence[Bucket],
        states: list[_State],
        units: Sequence[int],
        over: tuple[int, ...],
        made: list[tuple[str, _State]] | None,
        now_us: Micros,
    ) -> Reserved:
        """Take it of all of them; there is room."""
        holding: list[int] = []
        standings: list[Standing] = []
        for bucket, state, asked in zip(buckets, states, units, strict=True):
            period_us = state.period_us
            if not bucket.taken:
                state.held += asked
                holding.append(asked)
            else:
                holding.append(0)
                state.used += asked * period_us if period_us else asked
            standings.append(Standing(-(-state.used // period_us) if period_us else state.used, state.held))
        self._holds[hold_id] = (tuple(buckets), states, holding)
        if made is not None:
            self._keep(made, now_us)
        return Reserved(tuple(standings), over)

    def extend(self, hold_id: str, units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Hold more of the hold's buckets. Refused only for want of room in an enforced bucket that `ends_streams`; others without room are `over`.

        Buckets of which nothing more is asked are not looked at. An unknown hold answers Reserved with no standings.
        """
        hold = self._holds.get(hold_id)
        if hold is None:
            return Reserved(())
        buckets, states, holding = hold
        shortages: list[Shortage] = []
        over: list[int] = []
        for index, (bucket, asked) in enumerate(zip(buckets, units, strict=True)):
            state = self._here(bucket, states[index])
            states[index] = state
            _move_on(state, now_us)
            if asked <= 0 or _fits(bucket, state, asked):
                continue
            if bucket.ends_streams and bucket.enforced:
                shortages.append(_shortage(index, bucket, state, asked, now_us))
            else:
                over.append(index)
        if shortages:
            return Refused(tuple(shortages))
        for index, (bucket, state, asked) in enumerate(zip(buckets, states, units, strict=True)):
            if bucket.taken:
                _use(state, asked, now_us)
            else:
                state.held += asked
                holding[index] += asked
        return Reserved(tuple(map(_standing, states)), tuple(over))

    def settle(self, hold_id: str, used: Sequence[int], *, also: Sequence[tuple[Bucket, int]] = (), now_us: Micros) -> None:
        """End the hold: nothing of it is held any more, `used[i]` is used of each bucket (of one that was `taken`: besides). An empty `used`: zeros.

        `also` is used of buckets that the hold did not cover; those that are not known and not fresh are left to the ledger. Settling a hold that is
        not there, because it was settled, changes nothing.
        """
        hold = self._holds.get(hold_id)
        if hold is None:
            return
        buckets, states, holding = hold
        uses = used or (0,) * len(states)
        if len(uses) != len(states):
            raise ValueError(f"hold {hold_id} is of {len(states)} buckets and was settled with {len(uses)} numbers")
        del self._holds[hold_id]
        given_back: list[str] = []
        for bucket, here, units, use in zip(buckets, states, holding, uses, strict=True):
            state = self._here(bucket, here) if here.gone else here
            state.held -= units
            if use:
                _use(state, use, now_us)
            if units > 0 or use < 0:
                given_back.append(bucket.bucket_id)
        for bucket, use in also:
            other = self._states.get(bucket.bucket_id)
            if other is None or other.kind is not bucket.kind:
                if not bucket.fresh or bucket.kind is _GAUGE:
                    self._late.note(bucket.bucket_id, use, now_us)
                    continue
                other = _State(bucket, 0, now_us)
                self._keep([(bucket.bucket_id, other)], now_us)
            _use(other, use, now_us)
            if use < 0:
                given_back.append(bucket.bucket_id)
        self._tell(given_back)

    def charge(self, charge_id: str, charges: Sequence[tuple[Bucket, int]]) -> None:
        """Correct counters that are known by `units`, once for each charge id and bucket. Levels and gauges are left alone, as what is not known."""
        given_back: list[str] = []
        for bucket, units in charges:
            state = self._states.get(bucket.bucket_id)
            if state is None or state.kind is not _COUNTER:
                continue
            if state.charges is None:
                state.charges = {}
            if charge_id in state.charges:
                continue
            if len(state.charges) >= CHARGES_KEPT:
                state.charges = dict.fromkeys(list(state.charges)[CHARGES_KEPT // 2 :])
            state.charges[charge_id] = None
            state.used += units
            if units < 0:
                given_back.append(bucket.bucket_id)
        self._tell(given_back)

    def seed(self, seeds: Sequence[Seed]) -> None:
        """Tell what was used of buckets that are not known; those that are stay as they are. One that may lack late use stays unknown, to be read again."""
        for seed in seeds:
            bucket = seed.bucket
            state = self._states.get(bucket.bucket_id)
            if bucket.kind is _GAUGE or (state is not None and state.kind is bucket.kind):
                continue
            late = self._late.beside(seed)
            if late is None:
                continue
            state = _State(bucket, seed.used + late, seed.at_us)
            state.charges = dict.fromkeys(seed.included) or None
            self._keep([(bucket.bucket_id, state)], seed.at_us)

    def standings(self, buckets: Sequence[Bucket], *, now_us: Micros) -> list[Standing | None]:
        """How they stand, changing nothing; None for one that is not known (a fresh one, or a gauge, stands at zero)."""
        standings: list[Standing | None] = []
        for bucket in buckets:
            state = self._states.get(bucket.bucket_id)
            if state is not None and state.kind is bucket.kind:
                _move_on(state, now_us)
                standings.append(_standing(state))
            else:
                standings.append(Standing() if bucket.fresh or bucket.kind is _GAUGE else None)
        return standings

    def holds(self, owner: str = "") -> list[Hold]:
        """All holds; none if another owner's are asked for."""
        if owner and owner != self.owner:
            return []
        return [
            Hold(hold_id, self.owner, tuple((bucket.bucket_id, units) for bucket, units in zip(buckets, holding, strict=True)))
            for hold_id, (buckets, _, holding) in self._holds.items()
        ]

    def forget(self, *, now_us: Micros, looks: int) -> int:
        """Look at the next `looks` buckets in turn and drop those that cannot matter any more; how many were dropped.

        A counter can go `KEPT_US` after its cycle, a level when it has been empty for `IDLE_US`, a gauge at zero; none of them while anything of it is
        held. Looking at two for each that is made keeps at most twice as many as are needed.
        """
        states, turns, dropped = self._states, self._turns, 0
        for _ in range(min(looks, len(turns))):
            bucket_id = turns.popleft()
            state = states[bucket_id]
            if _idle(state, now_us):
                state.gone = True
                del states[bucket_id]
                dropped += 1
            else:
                turns.append(bucket_id)
        return dropped

    def _again(self, buckets: Sequence[Bucket], now_us: Micros) -> Reserved:
        standings: list[Standing] = []
        over: list[int] = []
        for index, bucket in enumerate(buckets):
            state = self._states.get(bucket.bucket_id) or _State(bucket, 0, now_us)
            _move_on(state, now_us)
            standings.append(_standing(state))
            if not bucket.enforced and not _fits(bucket, state, 0):
                over.append(index)
        return Reserved(tuple(standings), tuple(over))

    def _keep(self, made: list[tuple[str, _State]], now_us: Micros) -> None:
        for bucket_id, state in made:
            replaced = self._states.get(bucket_id)
            if replaced is None:
                self._turns.append(bucket_id)
            self._states[bucket_id] = state
        self.forget(now_us=now_us, looks=2 * len(made))

    def _here(self, bucket: Bucket, state: _State) -> _State:
        """The state as it is known now: one that was forgotten under a hold comes back, or the one that took its place."""
        if not state.gone:
            return state
        other = self._states.get(bucket.bucket_id)
        if other is not None and other.kind is state.kind:
            return other
        state.gone = False
        if other is None:
            self._turns.append(bucket.bucket_id)
        self._states[bucket.bucket_id] = state
        return state

    def _tell(self, given_back: list[str]) -> None:
        if given_back:
            for callback in self._callbacks:
                for bucket_id in given_back:
                    callback(bucket_id)


def _move_on(state: _State, now_us: Micros) -> None:
    """Let a level leak up to now."""
    if state.period_us:
        state.used, state.at_us = leak(state.used, state.at_us, refill=state.refill, period_us=state.period_us, now_us=now_us)


def _retune(state: _State, bucket: Bucket) -> None:
    """The amount or the period of a rolling limit was changed: what leaked so far did so at the old rate, what is left stays the same in units."""
    state.used = rescale(state.used, period_us=state.period_us, new_period_us=bucket.period_us)
    state.refill, state.period_us = bucket.refill, bucket.period_us


def _use(state: _State, units: int, now_us: Micros) -> None:
    if state.period_us:
        _move_on(state, now_us)
        state.used += max(units, 0) * state.period_us
    elif state.kind is _COUNTER:
        state.used += units


def _fits(bucket: Bucket, state: _State, asked: int) -> bool:
    if state.period_us:
        return state.used <= (bucket.room - state.held - asked) * state.period_us
    return state.used + state.held + asked <= bucket.room


def _short(buckets: Sequence[Bucket], states: Sequence[_State], units: Sequence[int], now_us: Micros) -> tuple[tuple[Shortage, ...], tuple[int, ...]]:
    """Those that have no room: what is wanting where it is enforced, and the others."""
    shortages: list[Shortage] = []
    over: list[int] = []
    for index, (bucket, state, asked) in enumerate(zip(buckets, states, units, strict=True)):
        if _fits(bucket, state, asked):
            continue
        if bucket.enforced:
            shortages.append(_shortage(index, bucket, state, asked, now_us))
        else:
            over.append(index)
    return tuple(shortages), tuple(over)


def _shortage(index: int, bucket: Bucket, state: _State, asked: int, now_us: Micros) -> Shortage:
    if state.period_us:
        wait = wait_us(
            state.used, state.at_us, held=state.held, units=asked, room=bucket.room, refill=state.refill, period_us=state.period_us, now_us=now_us
        )
    else:
        # Nothing flows out of a counter or a gauge by itself; how long a counter's cycle still lasts is known to whoever made the bucket.
        wait = NEVER if asked > bucket.room else 0
    return Shortage(index, _standing(state), wait)


def _standing(state: _State) -> Standing:
    return Standing(whole_units(state.used, state.period_us) if state.period_us else state.used, state.held)


def _idle(state: _State, now_us: Micros) -> bool:
    if state.held:
        return False
    if state.period_us:
        return state.used <= state.refill * (now_us - state.at_us - IDLE_US)
    return state.kind is _GAUGE or 0 < state.ends_us < now_us - KEPT_US
