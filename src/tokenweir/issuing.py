"""Issuing keys and recording upstream credentials: the small library that the command line uses, and the console after it.

The rules it protects: a secret is returned once, by the call that made it, and only its digest is stored; what a key may do is checked before
anything is written, with one sentence that says what to write instead; rights only narrow: each model, network or date that is named takes rights
away, and a rotation adds none. Time and randomness are arguments. Change with it: `ports.Directory`, docs/KEYS.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Final, TypeAlias

import msgspec

from tokenweir import key_tokens
from tokenweir.errors import Conflict, NotFound
from tokenweir.key_tokens import Secret
from tokenweir.limits.queue import PRIORITIES
from tokenweir.periods import Micros, format_instant
from tokenweir.policies import Policy, parse_network
from tokenweir.ports import CredentialRecord, Directory, KeyRecord, OrganizationRecord, TeamRecord, Vault

Entropy: TypeAlias = Callable[[int], bytes]
"""Gives that many random bytes; `os.urandom` outside tests."""

DEFAULT_ORGANIZATION: Final = "default"
NAME_LENGTH_MAX: Final = 100
PARTS_MAX: Final = 100
"""Most models, networks or tags that one key may list."""
OVERLAP_MS_MAX: Final = 30 * 86_400_000

_MODEL_PATTERN: Final = re.compile(r"[A-Za-z0-9._:@/\-*?\[\]!]{1,200}\Z").match
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z").match


class IssuedKey(msgspec.Struct, frozen=True):
    """A new secret and the key it belongs to. The only value that ever holds the secret; it does not print it."""

    key: KeyRecord
    secret: Secret

    @property
    def id(self) -> str:
        """The id of the key."""
        return self.key.key_id


def issue_key(
    directory: Directory,
    pepper: bytes,
    *,
    team: str,
    name: str,
    organization: str = DEFAULT_ORGANIZATION,
    owner: str = "",
    tags: Sequence[str] = (),
    models: Sequence[str] = (),
    networks: Sequence[str] = (),
    expires_at_us: Micros | None = None,
    priority: str = "normal",
    actor: str,
    now_us: Micros,
    entropy: Entropy,
) -> IssuedKey:
    """Make a key; organization and team are created when missing. Raises ValueError for a wrong argument, Conflict for a name that is taken."""
    name = checked_name("key", name)
    owner = checked_name("owner", owner) if owner else ""
    tags = _each("tag", tags, lambda tag: checked_name("tag", tag))
    policy = checked_policy(models=models, networks=networks, expires_at_us=expires_at_us, priority=priority, now_us=now_us)
    home = ensure_team(directory, organization, team, actor=actor, now_us=now_us, entropy=entropy)
    part = key_tokens.key_part(entropy(key_tokens.ENTROPY_BYTES))
    token = key_tokens.mint(part, entropy(key_tokens.ENTROPY_BYTES))
    key = KeyRecord(
        key_id=f"key_{part}",
        organization_id=home.organization_id,
        organization=home.organization,
        team_id=home.team_id,
        team=home.team,
        name=name,
        owner=owner,
        tags=tags,
        policy=policy,
        created_at_us=now_us,
    )
    directory.add_key(key, key_tokens.digest(token, pepper), actor=actor)
    return IssuedKey(key, Secret(token))


def rotate_key(
    directory: Directory, pepper: bytes, key: str, *, overlap_ms: int, actor: str, now_us: Micros, entropy: Entropy, team: str = ""
) -> IssuedKey:
    """Give the key a new secret; the one before it is accepted until the overlap ends. Everything else about the key stays."""
    if not 0 <= overlap_ms <= OVERLAP_MS_MAX:
        raise ValueError("an overlap lasts between 0 and 30 days")
    found = show_key(directory, key, team=team)
    if found.revoked_at_us is not None:
        raise Conflict(f"{found.key_id} ({found.name}) was revoked at {format_instant(found.revoked_at_us)} and stays so; create another key")
    token = key_tokens.mint(found.key_id.removeprefix("key_"), entropy(key_tokens.ENTROPY_BYTES))
    rotated = directory.replace_secret(
        found.key_id, key_tokens.digest(token, pepper), overlap_ends_at_us=now_us + overlap_ms * 1_000, now_us=now_us, actor=actor
    )
    return IssuedKey(rotated, Secret(token))


def revoke_key(directory: Directory, key: str, *, actor: str, now_us: Micros, team: str = "") -> KeyRecord:
    """Take the key out of use at once, with every secret it has. It cannot be undone."""
    return directory.revoke_key(show_key(directory, key, team=team).key_id, now_us=now_us, actor=actor)


def list_keys(directory: Directory, *, team: str = "") -> list[KeyRecord]:
    """All keys, or those of one team; NotFound if there is no such team."""
    team = _normal(team)
    keys = directory.keys(team=team)
    if team and not keys and team not in {one.team for one in directory.teams()}:
        raise NotFound(f"there is no team {team!r}; list them with: tokenweir team list")
    return keys


def show_key(directory: Directory, key: str, *, team: str = "") -> KeyRecord:
    """The key of that id, or the only one of that name; a live key goes before revoked ones of the same name."""
    key = _normal(key)
    found = directory.keys(named=key, team=_normal(team))
    by_id = [one for one in found if one.key_id == key]
    live = [one for one in found if one.revoked_at_us is None]
    match by_id or live or found:
        case []:
            raise NotFound(f"there is no key {key!r}; list them with: tokenweir key list")
        case [one]:
            return one
        case several:
            choices = ", ".join(f"{one.key_id} (team {one.team})" for one in several[:10])
            raise Conflict(f"{len(several)} keys are named {key!r}; say which by its id: {choices}")


def set_credential(
    directory: Directory,
    vault: Vault,
    *,
    source: str,
    base_url: str,
    text: Secret | None = None,
    team: str = "",
    organization: str = DEFAULT_ORGANIZATION,
    actor: str,
    now_us: Micros,
    entropy: Entropy,
) -> CredentialRecord:
    """Record the upstream credential of a team, or of the organization if no team is named, in place of the one it has.

    `source` is `env:NAME`, `file:PATH`, or `sealed` with the `text` to seal.
    """
    checked_source(source)
    if (source == "sealed") != (text is not None):
        raise ValueError("a sealed credential needs its text, and no other kind takes one")
    if team:
        home = ensure_team(directory, organization, team, actor=actor, now_us=now_us, entropy=entropy)
        owner = (home.organization_id, home.organization, home.team_id, home.team)
    else:
        whole = directory.ensure_organization(
            OrganizationRecord(organization_id=new_id("org", entropy), organization=checked_name("organization", organization), created_at_us=now_us),
            actor=actor,
        )
        owner = (whole.organization_id, whole.organization, "", "")
    record = CredentialRecord(
        credential_id=new_id("cred", entropy),
        organization_id=owner[0],
        organization=owner[1],
        team_id=owner[2],
        team=owner[3],
        source=source,
        base_url=base_url,
        created_at_us=now_us,
    )
    sealed = b"" if text is None else vault.seal(record.credential_id, base_url, text.reveal())
    directory.set_credential(record, sealed, actor=actor)
    return record


def new_id(kind: str, entropy: Entropy) -> str:
    """An id such as `team_Zk3v9QxT1aBc`."""
    return f"{kind}_{key_tokens.key_part(entropy(key_tokens.ENTROPY_BYTES))}"


def checked_policy(
    *, models: Sequence[str], networks: Sequence[str], expires_at_us: Micros | None, priority: str = "normal", now_us: Micros
) -> Policy:
    """The rights of a new key; raises ValueError with a sentence for the first that cannot be meant."""
    if expires_at_us is not None and expires_at_us <= now_us:
        raise ValueError(f"a key that expires at {format_instant(expires_at_us)} would be expired already; give a time to come")
    known = next((one for one in PRIORITIES if one == priority), None)
    if known is None:
        raise ValueError(f"{priority!r} is not a priority; write {', '.join(PRIORITIES[:-1])} or {PRIORITIES[-1]}")
    return Policy(expires_at_us=expires_at_us, models=_each("model", models, _model), networks=_each("network", networks, _network), priority=known)


def checked_name(what: str, text: str) -> str:
    """The name, in one normal form and without surrounding space; raises ValueError if it is empty, too long or not printable."""
    name = _normal(text)
    if not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise ValueError(f"the name of the {what} takes 1 to {NAME_LENGTH_MAX} characters, not {len(name)}")
    if not name.isprintable():
        raise ValueError(f"the name of the {what} holds a character that cannot be printed: {name!r}")
    return name


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def checked_source(source: str) -> None:
    """Raise ValueError unless the source is one that a credential can come from."""
    kind, _, place = source.partition(":")
    if kind == "env" and not _VARIABLE(place):
        raise ValueError(f"{place!r} cannot be the name of an environment variable")
    if kind == "file" and not PurePosixPath(place).is_absolute():
        raise ValueError(f"{place!r} must be an absolute path, because the gateway may run in another directory")
    if kind not in ("env", "file") and source != "sealed":
        raise ValueError("a credential comes from env:NAME or file:PATH, or is sealed in the database")


def ensure_team(directory: Directory, organization: str, team: str, *, actor: str, now_us: Micros, entropy: Entropy) -> TeamRecord:
    """The team of that name, made with its organization if there is none. Raises ValueError for a name that cannot be one."""
    new = TeamRecord(
        organization_id=new_id("org", entropy),
        organization=checked_name("organization", organization),
        team_id=new_id("team", entropy),
        team=checked_name("team", team),
        created_at_us=now_us,
    )
    return directory.ensure_team(new, actor=actor)


def _each(what: str, texts: Sequence[str], checked: Callable[[str], str]) -> tuple[str, ...]:
    """Each text checked, without repetitions, in the order given."""
    if len(texts) > PARTS_MAX:
        raise ValueError(f"a key takes at most {PARTS_MAX} of each {what}, not {len(texts)}")
    return tuple(dict.fromkeys(map(checked, texts)))


def _model(pattern: str) -> str:
    pattern = pattern.strip()
    if not _MODEL_PATTERN(pattern):
        raise ValueError(f"{pattern!r} is not a model; write an id such as claude-haiku-4-5 or a pattern such as claude-haiku-*")
    return pattern


def _network(block: str) -> str:
    return str(parse_network(block))
