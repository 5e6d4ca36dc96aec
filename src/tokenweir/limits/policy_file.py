"""The policy file: limits as a TOML text that says how they shall be.

The rule it protects: all problems of a file are reported together, each naming the table, the field, what stands there and what would be right. Names
stand in the file; their ids are looked up in `Places`. What must change so that the limits are as the file says is planned by `policy_plan.py`. Change
with it: `drafting.py` (what each part may be), docs/LIMITS.md.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from tokenweir.errors import PolicyInvalid
from tokenweir.limits import drafting
from tokenweir.limits.cycle import parse_window
from tokenweir.limits.limit import Action, Limit, Resource, Scope, Window

DEFAULT_ORGANIZATION: Final = "default"
DEFAULT_POLICY: Final = "policy"
LIMITS_MAX: Final = 10_000
QUEUE_US_DEFAULT: Final = 30_000_000
"""How long a request may wait if the action is queue and nothing else is said; the same as on the command line."""

_TEXT: Final = "a text in quotes"
_YES_NO: Final = "true or false"
_FIELDS: Final[Mapping[str, str]] = {
    "name": _TEXT,
    "org": _YES_NO,
    "team": _TEXT,
    "key": _TEXT,
    "user": _TEXT,
    "session": _TEXT,
    "tag": _TEXT,
    "per": _TEXT,
    "resource": _TEXT,
    "amount": "an amount",
    "window": _TEXT,
    "timezone": _TEXT,
    "anchor": "a text, a whole number or a date",
    "models": 'a list of texts, such as ["claude-opus-*"]',
    "action": _TEXT,
    "queue_for": _TEXT,
    "to": _TEXT,
    "strict": _YES_NO,
    "shadow": _YES_NO,
    "carry_over": _YES_NO,
    "contact": _TEXT,
}
"""Every field of a `[[limit]]` table, and what it holds."""
_TOP: Final = ("organization", "policy", "limit")
_SHADED: Final[Mapping[str, tuple[str, ...]]] = {"window": ("carry_over", "action"), "action": ("queue_for", "to", "models")}
"""What cannot be judged while a part itself is wrong."""

T = TypeVar("T")


class DesiredLimit(msgspec.Struct, frozen=True):
    """A limit as the file wants it."""

    place: str
    """Where it stands, for people: `limit 3 "red's month"`."""
    team: str
    """Name or id of the team; empty for the whole organization, or for a key that is known by its id or the only one of its name."""
    key: str
    """Id or name of the key; empty if the limit is not for one key."""
    draft: Limit
    """All of it but the ids."""


class PolicyFile(msgspec.Struct, frozen=True):
    """What a file says."""

    organization: str
    policy: str
    """Its own name: the limits it brings are told by it from those of other files."""
    limits: tuple[DesiredLimit, ...]


class KeyPlace(msgspec.Struct, frozen=True):
    """A key that a limit may be for."""

    key_id: str
    name: str
    team_id: str
    team: str


class Places(msgspec.Struct, frozen=True):
    """The ids of an organization and of what is in it."""

    organization_id: str
    teams: Mapping[str, str]
    """Id by name."""
    keys: tuple[KeyPlace, ...]
    """Those that are not revoked."""


class NamedLimit(msgspec.Struct, frozen=True):
    """A limit with the names of its scope, for people."""

    limit: Limit
    team: str = ""
    key: str = ""


# Reading.


def read_policy(text: str) -> PolicyFile:
    """What the text says. Raises PolicyInvalid with one line for each problem."""
    try:
        tables = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalid(f"this is not TOML: {error}") from None
    except RecursionError:
        raise PolicyInvalid("this is not a policy file: it is nested too deeply") from None
    problems: list[str] = [f"{_shown(name)}: there is no such field{_nearest(name, _TOP)}" for name in tables if name not in _TOP]
    organization = _name(tables, "organization", DEFAULT_ORGANIZATION, problems)
    policy = _name(tables, "policy", DEFAULT_POLICY, problems)
    limits = tables.get("limit", [])
    desired: list[DesiredLimit] = []
    if not isinstance(limits, list) or not all(isinstance(one, dict) for one in limits):
        problems.append("limit: each limit is a table of its own, headed by [[limit]]")
    elif len(limits) > LIMITS_MAX:
        problems.append(f"a policy file takes at most {LIMITS_MAX:,} limits, not {len(limits):,}")
    else:
        for number, table in enumerate(limits, 1):
            desired += _Table(number, table, problems).limit()
        problems += _repeated(desired)
    if problems:
        raise PolicyInvalid("\n".join(problems))
    return PolicyFile(organization, policy, tuple(desired))


def _name(tables: Mapping[str, Any], field: str, default: str, problems: list[str]) -> str:
    value = tables.get(field, default)
    if isinstance(value, str) and 1 <= len(_normal(value)) <= drafting.NAME_LENGTH_MAX and value.isprintable():
        return _normal(value)
    problems.append(f"{field} = {_shown(value)}: write a name of 1 to {drafting.NAME_LENGTH_MAX} printable characters, in quotes")
    return default


def _repeated(desired: Sequence[DesiredLimit]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"{one.place}: name = {_shown(one.draft.name)} is that of {before} already; give each limit a name of its own"
        for one in desired
        if (before := first.setdefault(one.draft.name, one.place)) != one.place
    ]


class _Table:
    """One `[[limit]]`, read field by field; what is wrong goes into `problems` and is replaced by something harmless, so that the rest is judged too."""

    def __init__(self, number: int, table: Mapping[str, Any], problems: list[str]) -> None:
        self._table = table
        self._problems = problems
        self._wrong: set[str] = set()
        name = table.get("name")
        self.place = f"limit {number} {_shown(name)}" if isinstance(name, str) else f"limit {number}"

    def limit(self) -> list[DesiredLimit]:
        """The limit, if its resource can be read; what is wrong with it is among the problems."""
        for field in self._table:
            if field not in _FIELDS:
                self._say(field, f"there is no such field{_nearest(field, tuple(_FIELDS))}", shown=False)
        self._types()
        for field in ("name", "resource", "amount"):
            if field not in self._table:
                self._say(field, "it must be said")
        team, key = self._text("team"), self._text("key")
        self._for_whom(team, key)
        resource = self._parsed("resource", drafting.parse_resource, None)
        if resource is None:
            return []
        draft = self._draft(resource, team, key)
        shaded = self._wrong | {part for wrong in self._wrong for part in _SHADED.get(wrong, ())}
        for part, problem in drafting.problems_of(draft):
            if part not in shaded:
                self._say(part, problem)
        return [DesiredLimit(self.place, team, key, replace(draft, scope=replace(draft.scope, organization_id="", team_id="", key_id="")))]

    def _draft(self, resource: Resource, team: str, key: str) -> Limit:
        action = self._parsed("action", drafting.parse_action, Action.BLOCK)
        queue_us = self._parsed("queue_for", drafting.parse_duration_us, QUEUE_US_DEFAULT if action is Action.QUEUE else 0)
        per: Any = self._text("per")
        return Limit(
            limit_id="",
            name=self._text("name"),
            scope=Scope(
                organization_id=".",
                team_id=team,
                key_id=key,
                user=self._text("user"),
                session=self._text("session"),
                tag=self._text("tag"),
                per=per,
            ),
            resource=resource,
            amount=self._parsed("amount", lambda written: drafting.parse_amount(resource, written), 1),
            window=self._window(resource),
            models=tuple(dict.fromkeys(model.strip() for model in self._models())),
            action=action,
            queue_ms=-(-queue_us // 1_000),
            downgrade_to=self._text("to"),
            strict=self._yes("strict"),
            shadow=self._yes("shadow"),
            carry_over=self._yes("carry_over"),
            contact=self._text("contact"),
        )

    def _window(self, resource: Resource) -> Window:
        if "window" not in self._table and resource is not Resource.CONCURRENCY:
            return None
        anchor = "" if "anchor" in self._wrong else self._table.get("anchor", "")
        anchor = anchor.isoformat() if isinstance(anchor, date) else str(anchor)
        written = self._text("window")
        for timezone in (self._text("timezone"), ""):  # without a zone that is wrong, so that the anchor is judged too
            try:
                window = parse_window(written, resource=resource, timezone=timezone, anchor=anchor)
            except ValueError as error:
                part = str(error).partition(" ")[0]
                self._say(part if part in self._table else "window", str(error))
                self._wrong.add("window")
            else:
                return window
        return None

    def _types(self) -> None:
        for field, value in self._table.items():
            kind, right = _FIELDS.get(field), False
            match value:
                case Decimal() if kind == "an amount":
                    self._say(field, f'a TOML float is not exact; write {field} = "{value}"')
                case bool():
                    right = kind == _YES_NO
                case str():
                    right = kind in (_TEXT, "an amount", _FIELDS["anchor"])
                case int():
                    right = kind in ("an amount", _FIELDS["anchor"])
                case list():
                    right = field == "models" and all(isinstance(one, str) for one in value)
                case _:
                    right = field == "anchor" and type(value) is date
            if kind is not None and field not in self._wrong and not right:
                self._say(field, f"write {kind}")

    def _for_whom(self, team: str, key: str) -> None:
        org = self._yes("org")
        if org and (team or key):
            self._say("org", f"it is for the whole organization or for one {'team' if team else 'key'}; leave one of the two out")
        elif not (org or team or key) and not self._wrong & {"org", "team", "key"}:
            self._problems.append(f'{self.place}: say for whom it is: org = true, team = "…" or key = "…"')

    def _models(self) -> Sequence[str]:
        return [] if "models" in self._wrong else self._table.get("models", [])

    def _text(self, field: str) -> str:
        return "" if field in self._wrong else _normal(self._table.get(field, ""))

    def _yes(self, field: str) -> bool:
        return field not in self._wrong and bool(self._table.get(field, False))

    def _parsed(self, field: str, parse: Callable[[Any], T], otherwise: T) -> T:
        if field in self._wrong or field not in self._table:
            return otherwise
        try:
            return parse(self._table[field])
        except ValueError as error:
            self._say(field, str(error))
            return otherwise

    def _say(self, field: str, problem: str, *, shown: bool = True) -> None:
        if field in self._wrong:
            return
        self._wrong.add(field)
        stands = f" = {_shown(self._table[field])}" if shown and field in self._table else ""
        # A sentence may begin with the field and its value, which stand here already.
        value = str(self._table.get(field, ""))
        repeated = re.match(rf"(?:{field} )?{re.escape(repr(value))}(?=[: ])", problem, re.IGNORECASE) if stands else None
        self._problems.append(f"{self.place}: {field}{stands}" + (problem[repeated.end() :] if repeated else f": {problem}"))


def _shown(value: object) -> str:
    """As it stands in the file, or nearly so."""
    if isinstance(value, Decimal | date):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


# Looking up.


def resolve(file: PolicyFile, places: Places) -> list[NamedLimit]:
    """The limits with the ids of their scopes; their own ids are still empty. Raises PolicyInvalid with one line for each name that is not known."""
    problems: list[str] = []
    limits = []
    for one in file.limits:
        found = _found(one, places, problems)
        if found is not None:
            scope = replace(one.draft.scope, organization_id=places.organization_id, team_id=found.team_id, key_id=found.key_id)
            limits.append(NamedLimit(replace(one.draft, scope=scope, managed_by=file.policy), found.team, found.name))
    if problems:
        raise PolicyInvalid("\n".join(problems))
    return limits


def _found(one: DesiredLimit, places: Places, problems: list[str]) -> KeyPlace | None:
    """The place of the limit: a key, or a team or the organization with empty parts; None if it is not there."""
    team = one.team if one.team in places.teams else next((name for name, team_id in places.teams.items() if team_id == one.team), "")
    if one.team and not team:
        close = difflib.get_close_matches(one.team, places.teams, n=1)
        hint = f"did you mean {_shown(close[0])}?" if close else f"a team is made with its first key: tokenweir key create --team {one.team} …"
        problems.append(f"{one.place}: team = {_shown(one.team)}: there is no such team; {hint}")
        return None
    if not one.key:
        return KeyPlace("", "", places.teams[team] if team else "", team)
    found = [key for key in places.keys if one.key in (key.key_id, key.name) and team in ("", key.team)]
    found = [key for key in found if key.key_id == one.key] or found
    if len(found) == 1:
        return found[0]
    where = f" of team {team}" if team else ""
    if found:
        choices = ", ".join(f"{key.key_id} (team {key.team})" for key in found[:10])
        problems.append(f"{one.place}: key = {_shown(one.key)}: {len(found)} keys have this name; name its team, or write one of {choices}")
    else:
        problems.append(f"{one.place}: key = {_shown(one.key)}: there is no such key{where} in use; list them with: tokenweir key list")
    return None
