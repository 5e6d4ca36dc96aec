"""Setting and removing limits.

The rules it protects: everything is checked before anything is written, in one sentence naming what would be right; a limit is known by its name if
one is given, else by whose use of what it limits in which window: setting it again changes that one, and setting it as it is changes nothing. A limit
that shall count something else gets a new id in the same transaction, because its old counters hold something else. Change with it:
`limits/drafting.py` (what can be meant), `limits/identity.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from tokenweir.errors import Conflict
from tokenweir.issuing import Entropy, checked_name, new_id
from tokenweir.limit_ports import LimitDirectory, LimitRecord
from tokenweir.limiting.finding import Place, find_place, live_limit
from tokenweir.limits import drafting
from tokenweir.limits.cycle import parse_window
from tokenweir.limits.identity import changed_fields, counts_the_same, default_name, natural_key
from tokenweir.limits.limit import Action, Limit, Scope, Seat
from tokenweir.periods import Micros
from tokenweir.ports import Directory, OrganizationRecord

QUEUE_FOR_DEFAULT = "30s"


class SetLimit(msgspec.Struct, frozen=True):
    """A limit as it is now, and as it was before it was set; None if there was none."""

    limit: LimitRecord
    before: LimitRecord | None

    @property
    def changed(self) -> tuple[str, ...]:
        """The fields in which the two differ; none for a limit that is new or as it was."""
        return () if self.before is None else changed_fields(self.before.limit, self.limit.limit)

    @property
    def recounted(self) -> bool:
        """It counts something else than before, under a new id; its use is read from the ledger anew."""
        return self.before is not None and self.before.limit.limit_id != self.limit.limit.limit_id


def set_limit(
    directory: Directory,
    limits: LimitDirectory,
    *,
    organization: str = "",
    team: str = "",
    key: str = "",
    resource: str,
    amount: str | int,
    window: str = "",
    timezone: str = "",
    anchor: str = "",
    models: Sequence[str] = (),
    user: str = "",
    session: str = "",
    tag: str = "",
    per: str = "",
    action: str = "block",
    queue_for: str = "",
    to: str = "",
    strict: bool = False,
    shadow: bool = False,
    carry_over: bool = False,
    name: str = "",
    contact: str = "",
    actor: str,
    now_us: Micros,
    entropy: Entropy,
) -> SetLimit:
    """Set a limit on a key, else a team, else an organization (`default` if empty), all by name or id; what is not said is as if it never was said.

    Texts are as people write them: `amount` in units of the resource (spend in USD), `window` and `queue_for` such as `rolling:60s` and `30s`.
    Raises ValueError for what cannot be meant, NotFound, and Conflict where it is not clear which limit is meant.
    """
    what = drafting.parse_resource(resource)
    does = drafting.parse_action(action)
    draft = Limit(
        limit_id="",
        name=checked_name("limit", name) if name else "unnamed",
        scope=Scope("", user=_label("user", user), session=_label("session", session), tag=_label("tag", tag), per=_seat(per)),
        resource=what,
        amount=drafting.parse_amount(what, amount),
        window=parse_window(window, resource=what, timezone=timezone, anchor=anchor),
        models=tuple(dict.fromkeys(model.strip() for model in models)),
        action=does,
        queue_ms=_queue_ms(queue_for or (QUEUE_FOR_DEFAULT if does is Action.QUEUE else "")),
        downgrade_to=to.strip(),
        strict=strict,
        shadow=shadow,
        carry_over=carry_over,
        contact=contact.strip(),
        created_at_us=now_us,
    )
    place = find_place(directory, organization=organization, team=team, key=key)
    scope = replace(draft.scope, organization_id=place.organization_id or "new", team_id=place.team_id, key_id=place.key_id)
    draft = replace(draft, scope=scope)
    drafting.check_limit(draft)
    if not place.organization_id:
        made = directory.ensure_organization(OrganizationRecord(new_id("org", entropy), place.organization, now_us), actor=actor)
        place = replace(place, organization_id=made.organization_id)
        draft = replace(draft, scope=replace(scope, organization_id=made.organization_id))
    return _put(limits, draft, place, named=bool(name), actor=actor, now_us=now_us, entropy=entropy)


def remove_limit(limits: LimitDirectory, limit: str, *, actor: str, now_us: Micros) -> LimitRecord:
    """Take a limit away, by id or name; its history and its grants stay on record. Raises NotFound, Conflict."""
    found = live_limit(limits, limit)
    limits.put_limits([], removed=[found.limit.limit_id], actor=actor, now_us=now_us)
    return replace(found, removed_at_us=now_us)


def _put(limits: LimitDirectory, draft: Limit, place: Place, *, named: bool, actor: str, now_us: Micros, entropy: Entropy) -> SetLimit:
    before = _by_name(limits, draft) if named else _by_nature(limits, draft)
    removed: list[str] = []
    if before is None:
        name = draft.name if named else _free_name(limits, draft, place)
        after = replace(draft, name=name, limit_id=new_id("limit", entropy))
    else:
        old = before.limit
        after = replace(draft, name=old.name, managed_by=old.managed_by, limit_id=old.limit_id, created_at_us=old.created_at_us)
        if set(after.models) == set(old.models):
            after = replace(after, models=old.models)  # the order in which they are named means nothing
        if not counts_the_same(old, after):
            after, removed = replace(after, limit_id=new_id("limit", entropy), created_at_us=now_us), [old.limit_id]
    limits.put_limits([after], removed=removed, actor=actor, now_us=now_us)
    now = next(one for one in limits.limits(named=after.limit_id, removed=True) if one.limit.limit_id == after.limit_id)
    return SetLimit(now, before)


def _by_name(limits: LimitDirectory, draft: Limit) -> LimitRecord | None:
    found = limits.limits(named=draft.name, organization_id=draft.scope.organization_id)
    return next((one for one in found if one.limit.name == draft.name), None)


def _by_nature(limits: LimitDirectory, draft: Limit) -> LimitRecord | None:
    scope, key = draft.scope, natural_key(draft)
    found = [
        one
        for one in limits.limits(organization_id=scope.organization_id, team_id=scope.team_id, key_id=scope.key_id)
        if natural_key(one.limit) == key
    ]
    if len(found) > 1:
        choices = ", ".join(f"{one.limit.name!r} ({one.limit.limit_id})" for one in found[:10])
        raise Conflict(f"{len(found)} limits are on the same use of {draft.resource}; say by its name which is meant: {choices}")
    return found[0] if found else None


def _free_name(limits: LimitDirectory, draft: Limit, place: Place) -> str:
    taken: set[str] = set()
    while True:
        name = default_name(draft, taken, organization=place.organization, team=place.team, key=place.key)
        if not limits.limits(named=name, organization_id=draft.scope.organization_id):
            return name
        taken.add(name)


def _seat(per: str) -> Seat:
    match per.strip():
        case "" | "team" | "key" | "user" | "session" as seat:
            return seat
        case other:
            raise ValueError(f"per {other!r} is not known; a limit is per {', '.join(drafting.SEATS[:-1])} or {drafting.SEATS[-1]}")


def _label(what: str, text: str) -> str:
    return checked_name(what, text) if text else ""


def _queue_ms(text: str) -> int:
    if not text:
        return 0
    wait_us = drafting.parse_duration_us(text)
    if wait_us < 1_000 or wait_us % 1_000:
        raise ValueError(f"queue-for {text!r} is too short; write how long a request may wait, such as {QUEUE_FOR_DEFAULT}")
    return wait_us // 1_000
