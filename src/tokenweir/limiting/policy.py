"""Carrying out a policy file: what it says against what there is, and all of the difference in one transaction.

The rules it protects: nothing is changed that the plan did not show; a file that was carried out has nothing left to do; a name that is not known
changes nothing. Change with it: `limits/policy_file.py`, `limits/policy_plan.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from msgspec.structs import replace

from tokenweir.errors import Conflict, PolicyInvalid
from tokenweir.issuing import DEFAULT_ORGANIZATION, Entropy, new_id
from tokenweir.limit_ports import LimitDirectory
from tokenweir.limits.policy_file import KeyPlace, NamedLimit, Places, PolicyFile, resolve
from tokenweir.limits.policy_plan import Plan, plan, puts_of
from tokenweir.periods import Micros
from tokenweir.ports import Directory, OrganizationRecord


def places_of(directory: Directory, organization: str) -> Places:
    """The ids that names of a policy file may stand for; that of an organization that is only made with its first limit or key is empty.

    Raises PolicyInvalid for another organization that is not there.
    """
    home = next((one for one in directory.organizations() if one.organization == organization), None)
    if home is None:
        if organization != DEFAULT_ORGANIZATION:
            raise PolicyInvalid(f'organization = "{organization}": there is no such organization; it is made with its first key')
        return Places("", {}, ())
    teams = {one.team: one.team_id for one in directory.teams() if one.organization_id == home.organization_id}
    keys = (
        KeyPlace(one.key_id, one.name, one.team_id, one.team) for one in directory.keys(revoked=False) if one.organization_id == home.organization_id
    )
    return Places(home.organization_id, teams, tuple(keys))


def plan_policy(directory: Directory, limits: LimitDirectory, file: PolicyFile) -> Plan:
    """What must change so that the limits are as the file says. Raises PolicyInvalid with one line for each problem."""
    places = places_of(directory, file.organization)
    desired = resolve(file, places)
    current = limits.limits(organization_id=places.organization_id) if places.organization_id else []
    named = [NamedLimit(one.limit, one.team, one.key) for one in current]
    return plan(desired, named, organization=file.organization, policy=file.policy)


def apply_policy(
    directory: Directory, limits: LimitDirectory, file: PolicyFile, *, shown: Plan | None, actor: str, now_us: Micros, entropy: Entropy
) -> Plan:
    """Plan again and carry it out, all or nothing; returns what was done.

    Raises Conflict, having changed nothing, if the plan is not the one that was `shown` (None: whatever it is), PolicyInvalid as planning does.
    """
    made = plan_policy(directory, limits, file)
    if shown is not None and made != shown:
        raise Conflict("nothing was changed: the limits, teams or keys are not as they were when the plan was shown; look at the plan again")
    if made.is_empty:
        return made
    put, removed = puts_of(made, mint=lambda: new_id("limit", entropy), now_us=now_us)
    if any(not limit.scope.organization_id for limit in put):
        home = directory.ensure_organization(OrganizationRecord(new_id("org", entropy), file.organization, now_us), actor=actor)
        put = [replace(limit, scope=replace(limit.scope, organization_id=home.organization_id)) for limit in put]
    limits.put_limits(put, removed=removed, actor=actor, now_us=now_us)
    return made
