"""The directory in SQL: organizations, teams, keys, credentials, and the audit of every change.

The rules it protects: every change is one transaction with its audit record (`storage/changes.py`); only digests and sealed bytes go in.
Asking for changes when there are none is one read of one row. Change with it: `storage/schema.py`, `ports.Directory`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, delete, func, insert, select, update

from tokenweir.errors import Conflict, NotFound, SettingsInvalid
from tokenweir.periods import Micros, format_instant
from tokenweir.policies import Policy
from tokenweir.ports import AuditRecord, CredentialRecord, DirectoryChanges, KeyGrant, KeyRecord, OrganizationRecord, SealedCredential, TeamRecord
from tokenweir.principals import Principal
from tokenweir.storage.changes import LATEST, LOCK_OUT_CHANGES, Audited, changing, to_json
from tokenweir.storage.engine import reading, writing
from tokenweir.storage.limit_rows import AT_ONCE, changed_limits
from tokenweir.storage.schema import AUDIT, CREDENTIALS, KEY_SECRETS, KEYS, META, ORGANIZATIONS, TEAMS

PEPPER_CHECK: Final = "pepper_check"
"""Name of the row of `meta` that says which pepper the digests were made with; it tells nothing of the pepper itself."""


class SqlDirectory:
    """The directory on SQLite or PostgreSQL."""

    def __init__(self, engine: Engine, now_us: Callable[[], Micros]) -> None:
        self._engine = engine
        self._now_us = now_us

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    def require_pepper(self, pepper: bytes, *, remember: bool = True) -> None:
        """Raise SettingsInvalid if the digests here were made with another pepper; the first pepper that comes is remembered by a check value.

        Without this, a lost pepper that was made anew, or a second host without a copy of it, would look like a directory of unknown keys.
        """
        value = hmac.digest(pepper, b"tokenweir: which pepper is this", "sha256").hex()[:16]
        asked = select(META.c.value).where(META.c.name == PEPPER_CHECK)
        with reading(self._engine) as connection:
            known = connection.execute(asked).scalar()
        if known is None:
            if not remember:
                return
            with writing(self._engine) as connection:
                connection.execute(LOCK_OUT_CHANGES)
                known = connection.execute(asked).scalar()
                if known is None:
                    connection.execute(insert(META).values(name=PEPPER_CHECK, value=value))
                    return
        if not hmac.compare_digest(known, value):
            raise SettingsInvalid(
                "the pepper is not the one that the keys in this database were made with; put back the file `pepper` from your copy, or set secrets_dir"
            )

    # What the gateway follows.

    def changes_since(self, revision: int) -> DirectoryChanges:
        """Changes after `revision` (0 = everything). A revoked secret shows as `gone`; one in its overlap has the end of it as its expiry."""
        with reading(self._engine) as connection:
            latest = connection.execute(LATEST).scalar_one()
            if latest == revision:
                return DirectoryChanges(revision)
            now_us = self._now_us()
            grants: list[KeyGrant] = []
            gone: list[bytes] = []
            for row in connection.execute(_SECRETS.where(KEY_SECRETS.c.revision > revision)):
                ends_us = row.ends_at_us
                if row.revoked_at_us is not None or row.removed_at_us is not None or (ends_us is not None and ends_us <= now_us):
                    if revision:
                        gone.append(bytes(row.digest))
                else:
                    grants.append(_grant(row))
            return DirectoryChanges(
                latest, tuple(grants), tuple(gone), tuple(map(_sealed, connection.execute(_SEALED))), changed_limits(connection, revision)
            )

    # Organizations and teams.

    def ensure_organization(self, new: OrganizationRecord, *, actor: str) -> OrganizationRecord:
        """The organization of that name, created with the id of `new` if there is none."""
        with reading(self._engine) as connection:
            if found := _organization(connection, new.organization):
                return found
        with changing(self._engine, actor, new.created_at_us) as (connection, _, audited):
            return _ensure_organization(connection, new, audited)

    def ensure_team(self, new: TeamRecord, *, actor: str) -> TeamRecord:
        """The team of that name in the organization of that name; what is missing of the two is created with the ids of `new`."""
        with reading(self._engine) as connection:
            if found := _team(connection, new.organization, new.team):
                return found
        with changing(self._engine, actor, new.created_at_us) as (connection, _, audited):
            if found := _team(connection, new.organization, new.team):
                return found
            home = _ensure_organization(connection, OrganizationRecord(new.organization_id, new.organization, new.created_at_us), audited)
            connection.execute(
                insert(TEAMS).values(team_id=new.team_id, organization_id=home.organization_id, name=new.team, created_at_us=new.created_at_us)
            )
            audited("team.created", new.team_id, None, {"name": new.team, "organization": home.organization_id})
            return msgspec.structs.replace(new, organization_id=home.organization_id)

    def organizations(self) -> list[OrganizationRecord]:
        """All organizations, by name."""
        with reading(self._engine) as connection:
            return [_organization_record(row) for row in connection.execute(select(ORGANIZATIONS).order_by(ORGANIZATIONS.c.name))]

    def teams(self) -> list[TeamRecord]:
        """All teams, by name."""
        with reading(self._engine) as connection:
            return [_team_record(row) for row in connection.execute(_TEAMS.order_by(ORGANIZATIONS.c.name, TEAMS.c.name))]

    # Keys.

    def add_key(self, key: KeyRecord, digest: bytes, *, actor: str) -> None:
        """Store a new key with its first secret; Conflict if the team has a live key of that name."""
        with changing(self._engine, actor, key.created_at_us) as (connection, revision, audited):
            taken = select(KEYS.c.key_id).where(KEYS.c.team_id == key.team_id, KEYS.c.name == key.name, KEYS.c.revoked_at_us.is_(None))
            if other := connection.execute(taken).scalar():
                raise Conflict(f"team {key.team} has a key named {key.name!r} already ({other}); rotate or revoke that one, or choose another name")
            connection.execute(
                insert(KEYS).values(
                    key_id=key.key_id,
                    organization_id=key.organization_id,
                    team_id=key.team_id,
                    name=key.name,
                    owner=key.owner,
                    tags=to_json(key.tags),
                    policy=to_json(key.policy),
                    created_at_us=key.created_at_us,
                    revision=revision,
                )
            )
            connection.execute(insert(KEY_SECRETS).values(digest=digest, key_id=key.key_id, created_at_us=key.created_at_us, revision=revision))
            audited("key.created", key.key_id, None, _audited_key(key))

    def replace_secret(self, key_id: str, digest: bytes, *, overlap_ends_at_us: Micros, now_us: Micros, actor: str) -> KeyRecord:
        """Store a new secret; the newest one before it is accepted until the overlap ends, older ones no longer. Conflict if revoked."""
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            before = _key(connection, key_id)
            if before.revoked_at_us is not None:
                raise Conflict(f"{key_id} was revoked at {format_instant(before.revoked_at_us)} and stays so")
            of_key = KEY_SECRETS.c.key_id == key_id
            newest = of_key & KEY_SECRETS.c.removed_at_us.is_(None) & KEY_SECRETS.c.expires_at_us.is_(None)
            in_overlap = of_key & KEY_SECRETS.c.removed_at_us.is_(None) & KEY_SECRETS.c.expires_at_us.is_not(None)
            # A secret without overlap is removed, not expired: the clock of a gateway may be behind the one of this machine.
            ending = {"expires_at_us": overlap_ends_at_us} if overlap_ends_at_us > now_us else {"removed_at_us": now_us}
            connection.execute(update(KEY_SECRETS).where(in_overlap).values(removed_at_us=now_us))
            connection.execute(update(KEY_SECRETS).where(newest).values(ending))
            connection.execute(insert(KEY_SECRETS).values(digest=digest, key_id=key_id, created_at_us=now_us, revision=revision))
            _touch(connection, KEYS.c.key_id == key_id, revision)
            after = _key(connection, key_id)
            audited("key.rotated", key_id, _audited_key(before), _audited_key(after))
            return after

    def revoke_key(self, key_id: str, *, now_us: Micros, actor: str) -> KeyRecord:
        """No secret of the key is accepted any more. Revoking twice changes nothing."""
        with reading(self._engine) as connection:
            before = _key(connection, key_id)
            if before.revoked_at_us is not None:
                return before
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            before = _key(connection, key_id)
            if before.revoked_at_us is not None:
                return before
            connection.execute(update(KEYS).where(KEYS.c.key_id == key_id).values(revoked_at_us=now_us))
            _touch(connection, KEYS.c.key_id == key_id, revision)
            after = _key(connection, key_id)
            audited("key.revoked", key_id, _audited_key(before), _audited_key(after))
            return after

    def keys(self, *, team: str = "", named: str = "", revoked: bool = True) -> list[KeyRecord]:
        """Keys in order of creation; `named` is an id or a name."""
        asked = _KEYS.order_by(KEYS.c.created_at_us, KEYS.c.key_id)
        if team:
            asked = asked.where(TEAMS.c.name == team)
        if named:
            asked = asked.where((KEYS.c.key_id == named) | (KEYS.c.name == named))
        if not revoked:
            asked = asked.where(KEYS.c.revoked_at_us.is_(None))
        with reading(self._engine) as connection:
            return [_key_record(row) for row in connection.execute(asked)]

    # Credentials.

    def set_credential(self, record: CredentialRecord, sealed: bytes, *, actor: str) -> None:
        """Store the credential of a team or organization in place of the one it has."""
        with changing(self._engine, actor, record.created_at_us) as (connection, revision, audited):
            whose = (CREDENTIALS.c.organization_id == record.organization_id) & (CREDENTIALS.c.team_id == record.team_id)
            before = connection.execute(_CREDENTIALS.where(whose)).one_or_none()
            if before is not None:
                connection.execute(delete(CREDENTIALS).where(CREDENTIALS.c.credential_id == before.credential_id))
            connection.execute(
                insert(CREDENTIALS).values(
                    credential_id=record.credential_id,
                    organization_id=record.organization_id,
                    team_id=record.team_id,
                    source=record.source,
                    base_url=record.base_url,
                    sealed=sealed,
                    created_at_us=record.created_at_us,
                    revision=revision,
                )
            )
            _touch_keys(connection, record, revision)
            old = None if before is None else _audited_credential(_credential_record(before))
            audited("credential.set", record.credential_id, old, _audited_credential(record))

    def remove_credential(self, credential_id: str, *, now_us: Micros, actor: str) -> None:
        """Forget the credential; NotFound if there is none."""
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            row = connection.execute(_CREDENTIALS.where(CREDENTIALS.c.credential_id == credential_id)).one_or_none()
            if row is None:
                raise NotFound(f"there is no credential {credential_id!r}; list them with: tokenweir credential list")
            before = _credential_record(row)
            connection.execute(delete(CREDENTIALS).where(CREDENTIALS.c.credential_id == credential_id))
            _touch_keys(connection, before, revision)
            audited("credential.removed", credential_id, _audited_credential(before), None)

    def credentials(self) -> list[CredentialRecord]:
        """All credentials, without their content."""
        with reading(self._engine) as connection:
            return [_credential_record(row) for row in connection.execute(_CREDENTIALS.order_by(CREDENTIALS.c.created_at_us))]

    def audit_records(self, *, limit: int = 100, subjects: Sequence[str] = ()) -> list[AuditRecord]:
        """The latest changes, newest first: all, or those of certain things by their ids."""
        asked = select(AUDIT).order_by(AUDIT.c.audit_id.desc()).limit(limit)
        parts = [asked.where(AUDIT.c.subject.in_(subjects[start : start + AT_ONCE])) for start in range(0, len(subjects), AT_ONCE)] or [asked]
        with reading(self._engine) as connection:
            rows = [row for part in parts for row in connection.execute(part)]
        rows.sort(key=lambda row: row.audit_id, reverse=True)
        return [AuditRecord(row.at_us, row.actor, row.action, row.subject, row.before, row.after) for row in rows[:limit]]


# Questions, built once: SQLAlchemy compiles each a single time.

_KEYS: Final = (
    select(
        KEYS,
        TEAMS.c.name.label("team"),
        ORGANIZATIONS.c.organization_id,
        ORGANIZATIONS.c.name.label("organization"),
        select(func.max(KEY_SECRETS.c.expires_at_us))
        .where(KEY_SECRETS.c.key_id == KEYS.c.key_id, KEY_SECRETS.c.removed_at_us.is_(None))
        .scalar_subquery()
        .label("overlap_ends_at_us"),
    )
    .join(TEAMS, TEAMS.c.team_id == KEYS.c.team_id)
    .join(ORGANIZATIONS, ORGANIZATIONS.c.organization_id == TEAMS.c.organization_id)
)
_of_the_team = CREDENTIALS.alias("of_the_team")
_of_the_organization = CREDENTIALS.alias("of_the_organization")
_SECRETS: Final = (
    select(
        KEY_SECRETS.c.digest,
        KEY_SECRETS.c.expires_at_us.label("ends_at_us"),
        KEY_SECRETS.c.removed_at_us,
        KEYS,
        TEAMS.c.name.label("team"),
        ORGANIZATIONS.c.organization_id,
        ORGANIZATIONS.c.name.label("organization"),
        func.coalesce(_of_the_team.c.credential_id, _of_the_organization.c.credential_id, "").label("credential_id"),
    )
    .join(KEYS, KEYS.c.key_id == KEY_SECRETS.c.key_id)
    .join(TEAMS, TEAMS.c.team_id == KEYS.c.team_id)
    .join(ORGANIZATIONS, ORGANIZATIONS.c.organization_id == TEAMS.c.organization_id)
    .outerjoin(_of_the_team, _of_the_team.c.team_id == TEAMS.c.team_id)
    .outerjoin(
        _of_the_organization,
        (_of_the_organization.c.organization_id == ORGANIZATIONS.c.organization_id) & (_of_the_organization.c.team_id == ""),
    )
)
_TEAMS: Final = select(TEAMS, ORGANIZATIONS.c.name.label("organization")).join(
    ORGANIZATIONS, ORGANIZATIONS.c.organization_id == TEAMS.c.organization_id
)
_CREDENTIALS: Final = (
    select(
        CREDENTIALS.c.credential_id,
        CREDENTIALS.c.organization_id,
        ORGANIZATIONS.c.name.label("organization"),
        CREDENTIALS.c.team_id,
        TEAMS.c.name.label("team"),
        CREDENTIALS.c.source,
        CREDENTIALS.c.base_url,
        CREDENTIALS.c.created_at_us,
    )
    .join(ORGANIZATIONS, ORGANIZATIONS.c.organization_id == CREDENTIALS.c.organization_id)
    .outerjoin(TEAMS, TEAMS.c.team_id == CREDENTIALS.c.team_id)
)
_SEALED: Final = select(CREDENTIALS.c.credential_id, CREDENTIALS.c.source, CREDENTIALS.c.base_url, CREDENTIALS.c.sealed)


def _organization(connection: Connection, name: str) -> OrganizationRecord | None:
    row = connection.execute(select(ORGANIZATIONS).where(ORGANIZATIONS.c.name == name)).one_or_none()
    return None if row is None else _organization_record(row)


def _ensure_organization(connection: Connection, new: OrganizationRecord, audited: Audited) -> OrganizationRecord:
    if found := _organization(connection, new.organization):
        return found
    connection.execute(insert(ORGANIZATIONS).values(organization_id=new.organization_id, name=new.organization, created_at_us=new.created_at_us))
    audited("organization.created", new.organization_id, None, {"name": new.organization})
    return new


def _team(connection: Connection, organization: str, name: str) -> TeamRecord | None:
    row = connection.execute(_TEAMS.where(ORGANIZATIONS.c.name == organization, TEAMS.c.name == name)).one_or_none()
    return None if row is None else _team_record(row)


def _key(connection: Connection, key_id: str) -> KeyRecord:
    row = connection.execute(_KEYS.where(KEYS.c.key_id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {key_id!r}; list them with: tokenweir key list")
    return _key_record(row)


def _touch_keys(connection: Connection, record: CredentialRecord, revision: int) -> None:
    """Let the gateways read again every key whose credential may have become another one."""
    whose = KEYS.c.organization_id == record.organization_id
    _touch(connection, whose & (KEYS.c.team_id == record.team_id) if record.team_id else whose, revision)


def _touch(connection: Connection, whose: ColumnElement[bool], revision: int) -> None:
    """Mark keys, and all secrets of theirs, as changed in this revision."""
    connection.execute(update(KEY_SECRETS).where(KEY_SECRETS.c.key_id.in_(select(KEYS.c.key_id).where(whose))).values(revision=revision))
    connection.execute(update(KEYS).where(whose).values(revision=revision))


# Rows to values.


def _policy(row: Any, ends_us: Micros | None) -> Policy:
    """The rights of a key, or of one secret of it that is accepted until `ends_us` only."""
    policy = msgspec.json.decode(row.policy, type=Policy)
    if ends_us is None:
        return policy
    return msgspec.structs.replace(policy, expires_at_us=ends_us if policy.expires_at_us is None else min(policy.expires_at_us, ends_us))


def _tags(row: Any) -> tuple[str, ...]:
    return msgspec.json.decode(row.tags, type=tuple[str, ...])


def _grant(row: Any) -> KeyGrant:
    principal = Principal(
        organization_id=row.organization_id,
        team_id=row.team_id,
        key_id=row.key_id,
        organization=row.organization,
        team=row.team,
        key=row.name,
        owner=row.owner,
        tags=_tags(row),
    )
    return KeyGrant(bytes(row.digest), principal, _policy(row, row.ends_at_us), row.credential_id)


def _sealed(row: Any) -> SealedCredential:
    return SealedCredential(row.credential_id, row.source, row.base_url, bytes(row.sealed or b""))


def _organization_record(row: Any) -> OrganizationRecord:
    return OrganizationRecord(row.organization_id, row.name, row.created_at_us)


def _team_record(row: Any) -> TeamRecord:
    return TeamRecord(row.organization_id, row.organization, row.team_id, row.name, row.created_at_us)


def _key_record(row: Any) -> KeyRecord:
    return KeyRecord(
        key_id=row.key_id,
        organization_id=row.organization_id,
        organization=row.organization,
        team_id=row.team_id,
        team=row.team,
        name=row.name,
        owner=row.owner,
        tags=_tags(row),
        policy=_policy(row, None),
        created_at_us=row.created_at_us,
        revoked_at_us=row.revoked_at_us,
        overlap_ends_at_us=row.overlap_ends_at_us,
    )


def _credential_record(row: Any) -> CredentialRecord:
    return CredentialRecord(
        credential_id=row.credential_id,
        organization_id=row.organization_id,
        organization=row.organization,
        team_id=row.team_id,
        team=row.team or "",
        source=row.source,
        base_url=row.base_url,
        created_at_us=row.created_at_us,
    )


# What the audit says of them.


def _audited_key(key: KeyRecord) -> dict[str, object]:
    return {
        "name": key.name,
        "team": key.team_id,
        "owner": key.owner,
        "tags": key.tags,
        "models": key.policy.models,
        "networks": key.policy.networks,
        "expires_at_us": key.policy.expires_at_us,
        "priority": key.policy.priority,
        "revoked_at_us": key.revoked_at_us,
        "overlap_ends_at_us": key.overlap_ends_at_us,
    }


def _audited_credential(record: CredentialRecord) -> dict[str, object]:
    """Never the content, sealed or not."""
    return {"organization": record.organization_id, "team": record.team_id, "source": record.source, "base_url": record.base_url}
