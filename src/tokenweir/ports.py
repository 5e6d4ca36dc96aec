"""The ports of the directory: the clock, who may call, with which keys, and the secrets. The other effects: `ledger_ports.py`, `limit_ports.py`.

Adapters live in `storage/` and are named by `app.py` alone. They are synchronous: the worker and the command line call them directly, the gateway
calls them in a thread and never on its event loop. A database that does not answer raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from tokenweir.limit_ports import LimitRecord
from tokenweir.periods import Micros
from tokenweir.policies import Policy
from tokenweir.principals import Principal


class Clock(Protocol):
    """The time; only `app.py` makes a real one."""

    def now_us(self) -> Micros:
        """Wall clock, in microseconds, never going backwards within a process."""
        ...

    def monotonic_ns(self) -> int:
        """For durations."""
        ...


# The directory: organizations, teams, keys, credentials. Owner of the rules: issuing.py; adapter: storage/directory.py.


class KeyGrant(msgspec.Struct, frozen=True):
    """One accepted secret of a key, as the gateway's snapshot holds it. A key under rotation has two."""

    digest: bytes
    """HMAC-SHA-256 of the whole token under the pepper."""
    principal: Principal
    policy: Policy
    credential_id: str = ""
    """The upstream credential of the team or organization; empty means the one in the settings."""


class SealedCredential(msgspec.Struct, frozen=True):
    """An upstream credential as stored: where it comes from, where it may be sent, and its sealed bytes if the store holds it."""

    credential_id: str
    source: str
    """`env:NAME`, `file:PATH` or `sealed`."""
    base_url: str
    """The upstream it was given for. It is never sent to another one."""
    sealed: bytes = b""


class DirectoryChanges(msgspec.Struct, frozen=True):
    """All that changed after a revision: grants to put in, digests to take out."""

    revision: int
    grants: tuple[KeyGrant, ...] = ()
    gone: tuple[bytes, ...] = ()
    credentials: tuple[SealedCredential, ...] = ()
    """All there are, not only the changed ones, whenever the revision is another one: they are few."""
    limits: tuple[LimitRecord, ...] = ()
    """Those that were set, changed, given grants or removed."""


class DirectoryFeed(Protocol):
    """What the gateway needs of the directory."""

    def changes_since(self, revision: int) -> DirectoryChanges:
        """Changes after `revision` (0 = everything). A revoked secret shows as `gone`; one in its overlap has the end of it as its expiry."""
        ...


class OrganizationRecord(msgspec.Struct, frozen=True):
    """An organization: whoever pays the provider's bill."""

    organization_id: str
    organization: str
    created_at_us: Micros


class TeamRecord(msgspec.Struct, frozen=True):
    """A team of an organization."""

    organization_id: str
    organization: str
    team_id: str
    team: str
    created_at_us: Micros


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as people see it; no part of any secret is in it."""

    key_id: str
    organization_id: str
    organization: str
    team_id: str
    team: str
    name: str
    owner: str
    tags: tuple[str, ...]
    policy: Policy
    created_at_us: Micros
    revoked_at_us: Micros | None = None
    overlap_ends_at_us: Micros | None = None
    """After a rotation: until when the secret before it is still accepted."""


class CredentialRecord(msgspec.Struct, frozen=True):
    """An upstream credential as people see it: whose it is and where it comes from."""

    credential_id: str
    organization_id: str
    organization: str
    team_id: str
    """Empty for the credential of the whole organization."""
    team: str
    source: str
    base_url: str
    created_at_us: Micros


class AuditRecord(msgspec.Struct, frozen=True):
    """One change of the directory: who, when, what, and how it was before and after."""

    at_us: Micros
    actor: str
    action: str
    subject: str
    before: str
    """JSON; empty when there was nothing before."""
    after: str


class Directory(DirectoryFeed, Protocol):
    """The writing side. Each change is one transaction with its audit record, and moves the revision that the gateways follow."""

    def ensure_organization(self, new: OrganizationRecord, *, actor: str) -> OrganizationRecord:
        """The organization of that name, created with the id of `new` if there is none."""
        ...

    def ensure_team(self, new: TeamRecord, *, actor: str) -> TeamRecord:
        """The team of that name in the organization of that name; what is missing of the two is created with the ids of `new`."""
        ...

    def add_key(self, key: KeyRecord, digest: bytes, *, actor: str) -> None:
        """Store a new key with its first secret; Conflict if the team has a live key of that name."""
        ...

    def replace_secret(self, key_id: str, digest: bytes, *, overlap_ends_at_us: Micros, now_us: Micros, actor: str) -> KeyRecord:
        """Store a new secret; the newest one before it is accepted until the overlap ends, older ones no longer. Conflict if revoked."""
        ...

    def revoke_key(self, key_id: str, *, now_us: Micros, actor: str) -> KeyRecord:
        """No secret of the key is accepted any more. Revoking twice changes nothing."""
        ...

    def keys(self, *, team: str = "", named: str = "", revoked: bool = True) -> list[KeyRecord]:
        """Keys in order of creation; `named` is an id or a name."""
        ...

    def organizations(self) -> list[OrganizationRecord]:
        """All organizations, by name."""
        ...

    def teams(self) -> list[TeamRecord]:
        """All teams, by name."""
        ...

    def set_credential(self, record: CredentialRecord, sealed: bytes, *, actor: str) -> None:
        """Store the credential of a team or organization in place of the one it has."""
        ...

    def remove_credential(self, credential_id: str, *, now_us: Micros, actor: str) -> None:
        """Forget the credential; NotFound if there is none."""
        ...

    def credentials(self) -> list[CredentialRecord]:
        """All credentials, without their content."""
        ...

    def audit_records(self, *, limit: int = 100, subjects: Sequence[str] = ()) -> list[AuditRecord]:
        """The latest changes, newest first: all, or those of certain things by their ids."""
        ...


class Vault(Protocol):
    """Secrets that live outside the database. Adapter: storage/secrets.py."""

    @property
    def pepper(self) -> bytes:
        """The key of every token digest."""
        ...

    def seal(self, credential_id: str, base_url: str, text: str) -> bytes:
        """The text, encrypted so that only this vault opens it, and only for this credential and this upstream."""
        ...

    def upstream_key(self, credential: SealedCredential | None) -> str:
        """The key to send upstream; None asks for the one in the settings. Reads files: never on an event loop. Raises CredentialUnusable."""
        ...
