"""Trials of limits: the engine and its calendar beside the oracle, and random histories for both.

Each history has limits of its own (rolling, calendar in any zone and from any anchor, concurrent), seats, and a clock that creeps, jumps to the edges of
cycles and steps back. Every operation asserts that both agree, to the unit and the microsecond.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from limit_oracle import OracleCounter, OracleGauge, OracleLevel, first_day, local_day, next_first_day
from tokenweir.limits.bucket import Bucket, Kind, Refused, Reserved, Seed, Unseeded
from tokenweir.limits.buckets import Buckets
from tokenweir.limits.cycle import bounds, parse_window
from tokenweir.limits.limit import Cycle, Resource, Rolling
from tokenweir.periods import DAY_US, SECOND_US, parse_instant

ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham", "America/Santiago", "UTC")
MOMENTS = tuple(
    map(
        parse_instant,
        (
            *("2024-02-28T20:00Z", "2026-02-27T12:00Z", "2026-03-28T22:00Z", "2026-10-24T21:00Z", "2026-03-08T04:00Z", "2026-11-01T03:00Z"),
            *("2026-04-04T11:00Z", "2026-09-26T11:00Z", "2026-09-06T02:00Z", "2026-04-05T01:00Z", "2026-12-31T09:00Z", "2026-11-22T17:00Z"),
        ),
    )
)
"""Before month ends, leap days, changes of the clock in each of the zones, a new year; and an ordinary Sunday."""
SEATS = ("", "a", "b")


@dataclass
class Rule:
    """One limit of a history."""

    text: str
    kind: Kind
    room: int
    timezone: str = ""
    anchor: str = ""
    amount: int = 0
    """What a rolling limit leaks in its period."""
    taken: bool = False
    enforced: bool = True
    ends_streams: bool = False
    fresh: bool = True
    changed: bool = False
    """Whether the amount was changed since the beginning."""
    window: Rolling | Cycle | None = field(init=False)
    zone: ZoneInfo = field(init=False)

    def __post_init__(self) -> None:
        resource = Resource.CONCURRENCY if self.kind is Kind.GAUGE else Resource.TOKENS
        self.window = parse_window(self.text, resource=resource, timezone=self.timezone, anchor=self.anchor)
        self.zone = ZoneInfo(self.timezone or "UTC")


@dataclass
class Holding:
    """What one request holds, as the oracle knows it."""

    buckets: list[Bucket]
    models: list[OracleCounter]


class Trial:
    """The engine and the oracle, side by side. Every operation asserts that they agree."""

    def __init__(self, rules: Sequence[Rule], at_us: int, *, strict: bool) -> None:
        self.rules = list(rules)
        self.at_us = self.latest_us = at_us
        self.strict = strict
        """Nothing uses more than it held, no amount changes, the clock does not go back: so no limit is ever passed."""
        self.engine = Buckets("w")
        self.models: dict[str, OracleCounter] = {}
        self.cycles: set[tuple[str, date]] = set()
        self.open: dict[str, Holding] = {}
        self.count = 0
        self.decisions = 0
        self.wait_us = 0
        """The longest wait of the last refusal."""
        self.admitted = 0
        self._built: dict[tuple[int, str, int], Bucket] = {}

    # What happens

    def advance(self, by_us: int) -> None:
        # Back by less than the shortest period: a clock that is further behind was wrong before, see `gcra.leak`.
        self.at_us = max(self.at_us + by_us, self.latest_us - (0 if self.strict else 900_000))
        self.latest_us = max(self.latest_us, self.at_us)

    def to_edge(self, index: int, by_us: int) -> None:
        """To the end of the current cycle of a limit, or close to it."""
        window = self.rules[index].window
        if isinstance(window, Cycle):
            self.advance(bounds(window, self.at_us)[1] + by_us - self.at_us)

    def change(self, index: int, room: int, amount: int) -> None:
        self.rules[index] = replace(self.rules[index], room=room, amount=amount, changed=True)
        self._built.clear()

    def reserve(self, places: Sequence[tuple[int, str]], units: Sequence[int]) -> bool:
        self.count += 1
        hold_id = f"h{self.count}"
        found = [self._bucket(index, seat) for index, seat in places]
        buckets, models = [bucket for bucket, _ in found], [model for _, model in found]
        answer = self.engine.reserve(hold_id, buckets, units, now_us=self.at_us)
        if isinstance(answer, Unseeded):
            for index in answer.indices:
                self._seed(buckets[index], models[index])
            answer = self.engine.reserve(hold_id, buckets, units, now_us=self.at_us)
        short = self._short(buckets, models, units)
        self.decisions += 1
        refusing = [index for index in short if buckets[index].enforced]
        if refusing:
            self._check_refusal(answer, refusing, buckets, models, units)
            return False
        assert isinstance(answer, Reserved), f"refused though there was room: {answer} at {self.at_us}"
        assert answer.over == tuple(short)
        for bucket, model, asked in zip(buckets, models, units, strict=True):
            if bucket.period_us and isinstance(model, OracleLevel) and not self.strict:
                model.change(Fraction(bucket.refill, bucket.period_us))
            if bucket.taken:
                model.use(asked)
            else:
                model.held[hold_id] = asked
            assert not bucket.enforced or model.free(bucket.room) >= 0, "admitted beyond the room"
        self._check_standings(answer, models)
        self.open[hold_id] = Holding(buckets, models)
        self.admitted += 1
        return True

    def extend(self, hold_id: str, units: Sequence[int]) -> bool:
        holding = self.open[hold_id]
        answer = self.engine.extend(hold_id, units, now_us=self.at_us)
        self._touch(holding.models)
        short = [index for index in self._short(holding.buckets, holding.models, units) if units[index]]
        self.decisions += 1
        refusing = [index for index in short if holding.buckets[index].enforced and holding.buckets[index].ends_streams]
        if refusing:
            self._check_refusal(answer, refusing, holding.buckets, holding.models, units)
            return False
        assert isinstance(answer, Reserved)
        assert answer.over == tuple(short)
        for bucket, model, asked in zip(holding.buckets, holding.models, units, strict=True):
            if bucket.taken:
                model.use(asked)
            else:
                model.held[hold_id] += asked
        self._check_standings(answer, holding.models)
        return True

    def settle(self, hold_id: str, used: Sequence[int]) -> None:
        holding = self.open.pop(hold_id)
        self.engine.settle(hold_id, used, now_us=self.at_us)
        if self.count % 4 == 0:
            self.engine.settle(hold_id, used, now_us=self.at_us)
        for model, units in zip(holding.models, used, strict=True):
            model.held.pop(hold_id, None)
            if units:
                model.touch(self.at_us)
                model.use(units)

    def charge(self, place: tuple[int, str], units: int) -> None:
        if self.rules[place[0]].kind is not Kind.COUNTER:
            return
        bucket, model = self._bucket(*place)
        if self.engine.standings([replace_fresh(bucket)], now_us=self.at_us) == [None]:
            return
        self.count += 1
        for _ in range(2):
            self.engine.charge(f"adj{self.count}", [(bucket, units)])
        model.use(units)

    def finish(self) -> None:
        """End everything, and look at it as a whole."""
        for hold_id in list(self.open):
            self.settle(hold_id, [0] * len(self.open[hold_id].models))
        assert self.engine.holds() == []
        for model in self.models.values():
            if isinstance(model, OracleLevel):
                assert model.level == model.replayed(), "the oracle disagrees with itself"
        for bucket_id, state in self.engine._states.items():
            model = self.models[bucket_id]
            assert (state.held, sum(model.held.values())) == (0, 0)
            if isinstance(model, OracleLevel) and state.at_us >= model.at_us:
                model.touch(state.at_us)
                assert Fraction(state.used, state.period_us) == model.level
        if self.strict:
            self._check_strict()

    # How they compare

    def _bucket(self, index: int, seat: str) -> tuple[Bucket, OracleCounter]:
        limit = self.rules[index]
        bucket_id, start_us, ends_us = f"{index}|{seat}", 0, 0
        if isinstance(limit.window, Cycle):
            start_us, ends_us = bounds(limit.window, self.at_us)
            # The engine's bucket is named by the instant its cycle begins; the oracle's by the day on the wall.
            bucket_id = f"{bucket_id}|{start_us}"
        bucket = self._built.get((index, seat, start_us))
        if bucket is None:
            rolling = isinstance(limit.window, Rolling)
            bucket = self._built[index, seat, start_us] = Bucket(
                bucket_id,
                limit.kind,
                limit.room,
                enforced=limit.enforced,
                taken=limit.taken,
                ends_streams=limit.ends_streams,
                refill=limit.amount if rolling else 0,
                period_us=limit.window.period_us if isinstance(limit.window, Rolling) else 0,
                fresh=limit.fresh,
                ends_us=ends_us,
            )
        model = self.models.get(bucket_id)
        if model is None:
            model = self.models[bucket_id] = self._model(limit, bucket, f"{index}|{seat}", start_us)
        if isinstance(model, OracleLevel):
            model.touch(self.at_us)
            # A bucket that the engine does not have meets the new amount when it is made: a refusal makes none.
            if limit.changed and bucket_id in self.engine._states:
                model.change(Fraction(bucket.refill, bucket.period_us))
        elif isinstance(limit.window, Cycle):
            day = local_day(limit.zone, self.at_us)
            first = first_day(limit.window.unit, limit.window.anchor, limit.window.length_days, day)
            assert model.first == first, f"{day} has the bucket of the cycle of {model.first}, not of {first}"
        return bucket, model

    def _model(self, limit: Rule, bucket: Bucket, place: str, start_us: int) -> OracleCounter:
        if bucket.kind is Kind.GAUGE:
            return OracleGauge()
        if not isinstance(limit.window, Cycle):
            return OracleLevel(self.at_us, Fraction(bucket.refill, bucket.period_us))
        wall = (limit.window.unit, limit.window.anchor, limit.window.length_days)
        first = first_day(*wall, local_day(limit.zone, self.at_us))
        assert (place, first) not in self.cycles, f"two buckets for the cycle of {first}"
        self.cycles.add((place, first))
        assert local_day(limit.zone, start_us) == first
        assert first_day(*wall, local_day(limit.zone, start_us - 1)) < first
        assert local_day(limit.zone, bucket.ends_us) == next_first_day(*wall, first)
        assert first_day(*wall, local_day(limit.zone, bucket.ends_us - 1)) == first
        return OracleCounter(first)

    def _touch(self, models: Sequence[OracleCounter]) -> None:
        for model in models:
            model.touch(self.at_us)

    def _seed(self, bucket: Bucket, model: OracleCounter) -> None:
        assert not bucket.fresh
        assert bucket.kind is not Kind.GAUGE
        assert bucket.bucket_id not in self.engine._states
        assert not any(model.held.values())
        # Only what is empty, or a cycle that is long over, may ever have been forgotten.
        assert model.used == 0
        self.engine.seed([Seed(bucket, 0, self.at_us)])

    def _short(self, buckets: Sequence[Bucket], models: Sequence[OracleCounter], units: Sequence[int]) -> list[int]:
        return [index for index, (bucket, model, asked) in enumerate(zip(buckets, models, units, strict=True)) if asked > model.free(bucket.room)]

    def _check_refusal(
        self, answer: object, refusing: list[int], buckets: Sequence[Bucket], models: Sequence[OracleCounter], units: Sequence[int]
    ) -> None:
        assert isinstance(answer, Refused), f"admitted without room in {refusing} at {self.at_us}"
        assert [shortage.index for shortage in answer.shortages] == refusing
        for shortage in answer.shortages:
            bucket, model = buckets[shortage.index], models[shortage.index]
            assert (shortage.standing.used, shortage.standing.held) == (model.used, sum(model.held.values()))
            wait_us = model.wait(bucket.room, units[shortage.index])
            if wait_us > 0 and isinstance(model, OracleLevel):
                wait_us += model.at_us - self.at_us
            assert shortage.wait_us == wait_us
        self.wait_us = max(shortage.wait_us for shortage in answer.shortages)

    def _check_standings(self, answer: Reserved, models: Sequence[OracleCounter]) -> None:
        assert [(standing.used, standing.held) for standing in answer.standings] == [(model.used, sum(model.held.values())) for model in models]

    def _check_strict(self) -> None:
        for bucket_id, model in self.models.items():
            limit = self.rules[int(bucket_id.partition("|")[0])]
            if not limit.enforced:
                continue
            if isinstance(model, OracleLevel):
                for window_us in (1, SECOND_US, limit.window.period_us, 3 * limit.window.period_us):  # type: ignore[union-attr]
                    assert model.most_in(window_us) <= limit.room + model.rate * window_us
            else:
                assert model.used <= limit.room


def replace_fresh(bucket: Bucket) -> Bucket:
    return Bucket(bucket.bucket_id, bucket.kind, bucket.room, ends_us=bucket.ends_us)


# Limits and histories by chance


class Chance(random.Random):
    """Draws that cost a third of those of the standard library, which are exact where this need not be."""

    def below(self, most: int) -> int:
        return int(self.random() * most)

    def one(self, values: Sequence[Any]) -> Any:
        return values[int(self.random() * len(values))]


def any_rule(chance: Chance, *, strict: bool) -> Rule:
    shape = chance.one(("counter", "counter", "level", "level", "gauge"))
    room = chance.one((0, 1, 2, 5, 10, 50, 1000))
    flags = {
        "taken": chance.random() < 0.3,
        "enforced": chance.random() < 0.85,
        "ends_streams": strict or chance.random() < 0.5,
        "fresh": chance.random() < 0.7,
    }
    if shape == "gauge":
        return Rule("", Kind.GAUGE, room, **{**flags, "taken": False})  # type: ignore[arg-type]
    if shape == "level":
        text = chance.one(("rolling:1s", "rolling:7s", "rolling:60s", "rolling:5m", "rolling:24h", "rolling:366d"))
        return Rule(text, Kind.LEVEL, room, amount=chance.one((1, 3, 60, 1000, 7919)), **flags)  # type: ignore[arg-type]
    text, anchors = chance.one(
        (
            ("day", ("",)),
            ("week", ("", "3", "7")),
            ("month", ("", "15", "29", "30", "31")),
            ("quarter", ("", "01-31", "02-29", "11-30")),
            ("year", ("", "04-01", "02-29")),
            ("every:14d", ("2026-11-16", "2024-02-29")),
            ("every:1d", ("2026-01-01",)),
        )
    )
    return Rule(text, Kind.COUNTER, room, timezone=chance.one(ZONES), anchor=chance.one(anchors), **flags)  # type: ignore[arg-type]


def any_step(chance: Chance) -> int:
    """How far the clock goes: mostly little, now and then far, and sometimes back."""
    kind = chance.random()
    if kind < 0.3:
        return 0
    if kind < 0.5:
        return 1 + chance.below(999)
    if kind < 0.8:
        return chance.below(5 * SECOND_US)
    if kind < 0.95:
        return chance.below(600 * SECOND_US)
    return chance.below(40 * DAY_US) if kind < 0.96 else -chance.below(900_000)


def run_history(seed: int, decisions: int) -> Trial:
    chance = Chance(seed)
    strict = chance.random() < 0.4
    rules = [any_rule(chance, strict=strict) for _ in range(1 + chance.below(4))]
    trial = Trial(rules, chance.one(MOMENTS) + chance.below(6 * 3600 * SECOND_US), strict=strict)
    while trial.decisions < decisions:
        kind = chance.random()
        trial.advance(any_step(chance))
        if kind < 0.66:
            places = [(index, chance.one(SEATS[: 1 + index])) for index in range(len(rules)) if chance.random() < 0.8]
            # Mostly about as much as there is room for: at the edge is where decisions go wrong.
            units = [chance.below(1 + max(1, rules[index].room // chance.one((1, 2, 5)))) for index, _ in places]
            if not trial.reserve(places, units) and 0 < trial.wait_us < 40 * DAY_US and kind < 0.3:
                # Come back a microsecond too early, and then on time.
                for by_us in (trial.wait_us - 1, 1):
                    trial.advance(by_us)
                    trial.reserve(places, units)
        elif kind < 0.74 and trial.open:
            hold_id = chance.one(list(trial.open))
            trial.extend(hold_id, [0 if bucket.taken else chance.below(3) for bucket in trial.open[hold_id].buckets])
        elif kind < 0.96 and trial.open:
            hold_id = next(iter(trial.open)) if kind < 0.88 else chance.one(list(trial.open))
            trial.settle(hold_id, any_use(chance, trial, hold_id))
        elif kind < 0.98:
            trial.to_edge(chance.below(len(rules)), chance.one((-1, 0, 0, 1)))
        elif not strict:
            index = chance.below(len(rules))
            if kind < 0.99:
                trial.charge((index, ""), chance.below(7) - 3)
            else:
                trial.change(index, chance.one((0, 1, 5, 20, 1000)), chance.one((1, 3, 60, 1000)))
    trial.finish()
    return trial


def any_use(chance: Chance, trial: Trial, hold_id: str) -> list[int]:
    holding = trial.open[hold_id]
    uses: list[int] = []
    for bucket, model in zip(holding.buckets, holding.models, strict=True):
        held = model.held.get(hold_id, 0)
        if bucket.kind is Kind.LEVEL and bucket.taken:
            uses.append(0 if trial.strict else chance.one((0, 0, 0, -1, 1)))
        elif bucket.taken:
            uses.append(chance.one((0, 0, 0, -1)) if trial.strict else chance.one((0, 0, -1, 1)))
        else:
            uses.append(chance.one((held, held, 0, chance.below(held + 1))) if trial.strict else chance.below(2 * held + 2))
    return uses
