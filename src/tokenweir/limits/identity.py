"""Which limit is which: what makes two of them the same one, what they count, how they differ, and what one is called that nobody named.

The rule it protects: what a limit counts never changes under its id, because its buckets are found by that id and hold the use of what was counted
before. How much there is, what happens then and who is told may change freely. Change with it: `limit.py`, `buckets.py` (the ids), `storage/limit_directory.py`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from tokenweir.limits.cycle import window_text
from tokenweir.limits.limit import Cycle, Limit, Resource, Rolling, Scope, Window

NAME_LENGTH_MAX: Final = 100

Counted: TypeAlias = tuple[Scope, Resource, int | Cycle | None, frozenset[str]]
NaturalKey: TypeAlias = tuple[Scope, Resource, tuple[str, int], frozenset[str]]


def counted(limit: Limit) -> Counted:
    """What the buckets of the limit hold the use of."""
    window = limit.window.period_us if isinstance(limit.window, Rolling) else limit.window
    return limit.scope, limit.resource, window, frozenset(limit.models)


def counts_the_same(one: Limit, other: Limit) -> bool:
    """Whether the buckets of one are right for the other."""
    return counted(one) == counted(other)


def natural_key(limit: Limit) -> NaturalKey:
    """What a limit is known by if it is not named: whose use of what, in windows of which length, of which models."""
    return limit.scope, limit.resource, _length(limit.window), frozenset(limit.models)


def changed_fields(before: Limit, after: Limit) -> tuple[str, ...]:
    """The names of fields in which they differ, in the order of the fields; ids and times of creation aside."""
    fields = (field.name for field in msgspec.structs.fields(Limit))
    return tuple(name for name in fields if name not in ("limit_id", "created_at_us") and getattr(before, name) != getattr(after, name))


def whose(scope: Scope, *, organization: str, team: str = "", key: str = "") -> str:
    """Whose use it is, for people: `team red`, `key ci of team red, session 7f…`."""
    who = f"key {key or scope.key_id} of team {team or scope.team_id}" if scope.key_id else f"team {team or scope.team_id}" if scope.team_id else ""
    parts = [who or f"organization {organization or scope.organization_id}"]
    parts += [f"{what} {name}" for what, name in (("user", scope.user), ("session", scope.session), ("tag", scope.tag)) if name]
    return ", ".join(parts) + (f", per {scope.per}" if scope.per else "")


def default_name(limit: Limit, taken: set[str], *, organization: str, team: str = "", key: str = "") -> str:
    """A name that tells what it limits, such as `team red · spend · month`, and that is not taken."""
    parts = [whose(limit.scope, organization=organization, team=team, key=key), limit.resource.replace("_", " ")]
    plain_window = msgspec.structs.replace(limit.window, burst=0) if isinstance(limit.window, Rolling) else limit.window
    parts += [window_text(plain_window).removeprefix("rolling:")] if limit.window else []
    parts += [", ".join(limit.models) if len(limit.models) < 3 else f"{len(limit.models)} models"] if limit.models else []
    plain = " · ".join(parts)
    name, number = plain[:NAME_LENGTH_MAX], 1
    while name in taken:
        number += 1
        more = f" ({number})"
        name = plain[: NAME_LENGTH_MAX - len(more)] + more
    return name


def _length(window: Window) -> tuple[str, int]:
    match window:
        case Rolling(period_us=period_us):
            return "rolling", period_us
        case Cycle(unit=unit, length_days=length_days):
            return unit, length_days
        case None:
            return "", 0
