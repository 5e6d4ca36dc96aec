"""Finding: the organization, team or key that is meant by a name, and the limit.

The rule it protects: a name stands for one thing or for nothing. What is not there is said, with the command that lists what is; what could be two
things is answered with the choices. Nothing is made here. Change with it: `issuing.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from tokenweir.errors import Conflict, NotFound
from tokenweir.issuing import DEFAULT_ORGANIZATION
from tokenweir.limit_ports import LimitDirectory, LimitRecord
from tokenweir.limits.identity import whose
from tokenweir.limits.limit import Scope
from tokenweir.periods import format_instant
from tokenweir.ports import AuditRecord, Directory, KeyRecord, OrganizationRecord, TeamRecord

ONE_BY_ONE_MAX: Final = 20
"""More limits than this are read all together."""
HISTORY_MAX: Final = 1_000
"""Most changes that a history goes back."""


class Place(msgspec.Struct, frozen=True):
    """An organization, one of its teams, or one key, with the names of all."""

    organization_id: str
    """Empty for the default organization before anything was made in it."""
    organization: str
    team_id: str = ""
    team: str = ""
    key_id: str = ""
    key: str = ""

    @property
    def scope(self) -> Scope:
        """The scope of all requests of that place."""
        return Scope(organization_id=self.organization_id, team_id=self.team_id, key_id=self.key_id)


def find_place(directory: Directory, *, organization: str = "", team: str = "", key: str = "") -> Place:
    """Whose use is meant, by names or ids: the key (within the team, if one is named), else the team, else the organization (`default` if empty).

    Raises NotFound, and Conflict for a name that several have.
    """
    home = _organization(directory, organization) if organization else None
    group = _team(directory, team, home) if team else None
    if key:
        found = _key(directory, key, home, group)
        if found.revoked_at_us is not None:
            raise Conflict(f"{found.key_id} ({found.name}) was revoked at {format_instant(found.revoked_at_us)}; name a key that is in use")
        return Place(found.organization_id, found.organization, found.team_id, found.team, found.key_id, found.name)
    if group is not None:
        return Place(group.organization_id, group.organization, group.team_id, group.team)
    if home is None:
        home = _organization(directory, DEFAULT_ORGANIZATION)
    return Place(home.organization_id, home.organization)


def list_limits(
    directory: Directory, limits: LimitDirectory, *, organization: str = "", team: str = "", key: str = "", removed: bool = False
) -> list[LimitRecord]:
    """Limits in order of creation: all, those set on an organization and within it, on a team and its keys, or on one key."""
    if not (organization or team or key):
        return limits.limits(removed=removed)
    place = find_place(directory, organization=organization, team=team, key=key)
    if not place.organization_id:
        return []
    return limits.limits(removed=removed, organization_id=place.organization_id, team_id=place.team_id or None, key_id=place.key_id or None)


def show_limit(limits: LimitDirectory, limit: str) -> LimitRecord:
    """The limit of that id, or the only one of that name; one in force goes before removed ones. Raises NotFound, Conflict."""
    limit = limit.strip()
    found = limits.limits(removed=True, named=limit) if limit else []
    by_id = [one for one in found if one.limit.limit_id == limit]
    live = [one for one in found if one.removed_at_us is None]
    match by_id or live or found[-1:]:
        case []:
            raise NotFound(f"there is no limit {limit!r}; list them with: tokenweir limit list")
        case [one]:
            return one
        case several:
            choices = ", ".join(f"{one.limit.limit_id} ({whose_of(one)})" for one in several[:10])
            raise Conflict(f"{len(several)} limits are named {limit!r}; say which by its id: {choices}")


def live_limit(limits: LimitDirectory, limit: str) -> LimitRecord:
    """The same, and it must be in force."""
    found = show_limit(limits, limit)
    if found.removed_at_us is not None:
        raise Conflict(f"limit {found.limit.limit_id} ({found.limit.name}) was removed at {format_instant(found.removed_at_us)}; set it again first")
    return found


def history_of(directory: Directory, limits: LimitDirectory, limit: str) -> list[AuditRecord]:
    """What was ever done to a limit, to those that had its name before it, to their grants and to requests for more; oldest first."""
    found = show_limit(limits, limit)
    named = limits.limits(removed=True, named=found.limit.name, organization_id=found.limit.scope.organization_id)
    ids = list(dict.fromkeys([found.limit.limit_id, *(one.limit.limit_id for one in named if one.limit.name == found.limit.name)]))
    subjects = [
        *ids,
        *(grant.grant_id for limit_id in ids for grant in limits.grants(limit_id=limit_id, voided=True)),
        *(request.request_id for limit_id in ids for request in limits.requests(limit_id=limit_id)),
    ]
    return directory.audit_records(limit=HISTORY_MAX, subjects=subjects)[::-1]


def limits_of(limits: LimitDirectory, limit_ids: Iterable[str]) -> dict[str, LimitRecord]:
    """The limits of those ids, removed ones too."""
    wanted = set(limit_ids)
    if len(wanted) > ONE_BY_ONE_MAX:
        return {one.limit.limit_id: one for one in limits.limits(removed=True) if one.limit.limit_id in wanted}
    found = (one for limit_id in wanted for one in limits.limits(removed=True, named=limit_id))
    return {one.limit.limit_id: one for one in found if one.limit.limit_id in wanted}


def whose_of(record: LimitRecord) -> str:
    """Whose use the limit counts, for people."""
    return whose(record.limit.scope, organization=record.organization, team=record.team, key=record.key)


def _organization(directory: Directory, organization: str) -> OrganizationRecord:
    found = [one for one in directory.organizations() if organization in (one.organization_id, one.organization)]
    if found:
        return found[0]
    if organization == DEFAULT_ORGANIZATION:  # it is made when it is first needed, as for the first key
        return OrganizationRecord("", DEFAULT_ORGANIZATION, 0)
    raise NotFound(f"there is no organization {organization!r}; list teams and their organizations with: tokenweir team list")


def _team(directory: Directory, team: str, home: OrganizationRecord | None) -> TeamRecord:
    found = [one for one in directory.teams() if team in (one.team_id, one.team) and (home is None or one.organization_id == home.organization_id)]
    match found:
        case []:
            where = "" if home is None else f" in the organization {home.organization}"
            raise NotFound(f"there is no team {team!r}{where}; list them with: tokenweir team list")
        case [one]:
            return one
        case several:
            choices = ", ".join(f"{one.team_id} (organization {one.organization})" for one in several[:10])
            raise Conflict(f"{len(several)} teams are named {team!r}; say which by its id: {choices}")


def _key(directory: Directory, key: str, home: OrganizationRecord | None, group: TeamRecord | None) -> KeyRecord:
    """As `issuing.show_key`, within an organization and a team: a live key goes before revoked ones of the same name."""
    found = [
        one
        for one in directory.keys(named=key)
        if (home is None or one.organization_id == home.organization_id) and (group is None or one.team_id == group.team_id)
    ]
    by_id = [one for one in found if one.key_id == key]
    live = [one for one in found if one.revoked_at_us is None]
    match by_id or live or found[-1:]:
        case []:
            where = f" in the team {group.team}" if group else f" in the organization {home.organization}" if home else ""
            raise NotFound(f"there is no key {key!r}{where}; list them with: tokenweir key list")
        case [one]:
            return one
        case several:
            choices = ", ".join(f"{one.key_id} (team {one.team} of {one.organization})" for one in several[:10])
            raise Conflict(f"{len(several)} keys are named {key!r}; say which by its id: {choices}")
