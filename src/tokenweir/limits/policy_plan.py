"""The plan of a policy file: what must change so that the limits are as the file says, and what is left alone.

The rules it protects: limits are matched by name; a file removes only what it brought itself, and what was set by hand stays; a plan that was carried
out leaves nothing to do. A change of what is counted gives the limit a new id, because the counters of the old one hold something else. Change with
it: `policy_file.py`, `cli/limit_policy.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from tokenweir.errors import PolicyInvalid
from tokenweir.limits import drafting
from tokenweir.limits.cycle import window_text
from tokenweir.limits.identity import counts_the_same
from tokenweir.limits.limit import Cycle, Limit, Scope
from tokenweir.limits.policy_file import NamedLimit
from tokenweir.periods import Micros


class FieldChange(msgspec.Struct, frozen=True):
    """One field before and after, as the file writes it; empty where it is left out."""

    field: str
    before: str
    after: str


class Creation(msgspec.Struct, frozen=True):
    """A limit that is not there yet."""

    name: str
    fields: Mapping[str, str]
    limit: Limit


class Change(msgspec.Struct, frozen=True):
    """A limit that is there, but not as the file says."""

    name: str
    limit_id: str
    fields: tuple[FieldChange, ...]
    adopted: bool
    """It was set by hand and belongs to the file from now on."""
    recounted: bool
    """It counts something else from now on: it gets a new id, its use is read from the ledger anew, and its grants go over to it
    if amounts mean the same there."""
    limit: Limit


class Removal(msgspec.Struct, frozen=True):
    """A limit that the file brought and does not name any more."""

    name: str
    limit_id: str
    fields: Mapping[str, str]


class Unmanaged(msgspec.Struct, frozen=True):
    """A limit that the file does not name and has not brought; it is left alone."""

    name: str
    limit_id: str
    managed_by: str
    """The policy it belongs to; empty if it was set by hand."""


class Plan(msgspec.Struct, frozen=True):
    """What a policy file would do to the limits of its organization. Everything is in order of name."""

    organization: str
    policy: str
    create: tuple[Creation, ...]
    change: tuple[Change, ...]
    remove: tuple[Removal, ...]
    unchanged: tuple[str, ...]
    unmanaged: tuple[Unmanaged, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.create or self.change or self.remove)


def plan(desired: Sequence[NamedLimit], current: Sequence[NamedLimit], *, organization: str, policy: str) -> Plan:
    """What must change so that the limits of the organization are as desired; `current` are all it has.

    Raises PolicyInvalid if a limit of that name belongs to another policy.
    """
    there = {one.limit.name: one for one in current}
    wanted = {one.limit.name: one for one in desired}
    foreign = [there[name].limit for name in wanted if name in there and there[name].limit.managed_by not in ("", policy)]
    if foreign:
        sentences = (
            f'limit "{one.name}" belongs to the policy "{one.managed_by}"; take it out there first, or choose another name' for one in foreign
        )
        raise PolicyInvalid("\n".join(sentences))
    changes = {name: _change(there[name], one) for name, one in sorted(wanted.items()) if name in there}
    rest = [one for name, one in sorted(there.items()) if name not in wanted]
    return Plan(
        organization=organization,
        policy=policy,
        create=tuple(
            Creation(name, fields_of(one.limit, team=one.team, key=one.key), one.limit) for name, one in sorted(wanted.items()) if name not in there
        ),
        change=tuple(change for change in changes.values() if change is not None),
        remove=tuple(
            Removal(one.limit.name, one.limit.limit_id, fields_of(one.limit, team=one.team, key=one.key))
            for one in rest
            if one.limit.managed_by == policy
        ),
        unchanged=tuple(name for name, change in changes.items() if change is None),
        unmanaged=tuple(Unmanaged(one.limit.name, one.limit.limit_id, one.limit.managed_by) for one in rest if one.limit.managed_by != policy),
    )


def puts_of(made: Plan, *, mint: Callable[[], str], now_us: Micros) -> tuple[list[Limit], list[str]]:
    """What the plan puts into the directory and takes out of it: for `LimitDirectory.put_limits`. `mint` gives a new limit id."""
    put = [replace(one.limit, limit_id=mint(), created_at_us=now_us) for one in made.create]
    put += [replace(one.limit, limit_id=mint(), created_at_us=now_us) if one.recounted else one.limit for one in made.change]
    return put, [one.limit_id for one in made.remove] + [one.limit_id for one in made.change if one.recounted]


def _change(before: NamedLimit, after: NamedLimit) -> Change | None:
    limit = replace(after.limit, limit_id=before.limit.limit_id, created_at_us=before.limit.created_at_us)
    if set(limit.models) == set(before.limit.models):
        limit = replace(limit, models=before.limit.models)  # the order in which they are named means nothing
    if limit == before.limit:
        return None
    old, new = fields_of(before.limit, team=before.team, key=before.key), fields_of(limit, team=after.team, key=after.key)
    names = [name for name in FIELDS if old.get(name, "") != new.get(name, "")]
    return Change(
        name=limit.name,
        limit_id=limit.limit_id,
        fields=tuple(FieldChange(name, old.get(name, ""), new.get(name, "")) for name in names),
        adopted=not before.limit.managed_by,
        recounted=not counts_the_same(before.limit, limit),
        limit=limit,
    )


# How a limit reads, field by field.

FIELDS = (
    *("for", "user", "session", "tag", "per", "resource", "amount", "window", "timezone", "anchor", "models"),
    *("action", "queue_for", "to", "strict", "shadow", "carry_over", "contact"),
)
"""The fields of a limit, as people read it."""


def fields_of(limit: Limit, *, team: str = "", key: str = "") -> dict[str, str]:
    """The limit as the file would say it, in the order of its fields, without what is left out; `team` and `key` are the names of its scope."""
    scope, window = limit.scope, limit.window
    fields = {
        "for": _for_whom(scope, team, key),
        "user": scope.user,
        "session": scope.session,
        "tag": scope.tag,
        "per": scope.per,
        "resource": limit.resource.value,
        "amount": drafting.amount_text(limit.resource, limit.amount),
        "window": window_text(window),
        "timezone": window.timezone if isinstance(window, Cycle) else "",
        "anchor": window.anchor if isinstance(window, Cycle) else "",
        "models": ", ".join(limit.models),
        "action": limit.action.value,
        "queue_for": drafting.duration_text(limit.queue_ms * 1_000) if limit.queue_ms else "",
        "to": limit.downgrade_to,
        "strict": "true" if limit.strict else "",
        "shadow": "true" if limit.shadow else "",
        "carry_over": "true" if limit.carry_over else "",
        "contact": limit.contact,
    }
    return {name: value for name, value in fields.items() if value}


def _for_whom(scope: Scope, team: str, key: str) -> str:
    if scope.key_id:
        return f"key {key} of team {team} ({scope.key_id})" if key else f"key {scope.key_id}"
    return f"team {team or scope.team_id}" if scope.team_id else "organization"
