"""Drafting a limit: reading what people write for its parts, and the check that the parts can be meant together.

The rule it protects: a limit that contradicts itself is refused in one sentence that says what to write instead, by the same words wherever it was
written (command line, policy file, console), and before anything is changed. Amounts are exact: no float is ever read. Change with it: `limit.py`,
`cycle.py` (which reads windows), `policy_file.py`, `limiting.py`, docs/LIMITS.md.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from tokenweir.limits.cycle import PERIOD_US_MAX, bounds
from tokenweir.limits.limit import AMOUNT_MAX, Action, Cycle, Limit, Resource, Rolling, Scope, covers
from tokenweir.money import NANOS_PER_USD
from tokenweir.periods import DAY_US, SECOND_US, Micros

NAME_LENGTH_MAX: Final = 100
CONTACT_LENGTH_MAX: Final = 200
MODELS_MAX: Final = 100
QUEUE_MS_MAX: Final = 600_000
"""Longest wait: clients and proxies give up a silent connection soon after ten minutes."""
SEATS: Final = ("team", "key", "user", "session")
_OUTGROWN: Final = (Resource.OUTPUT_TOKENS, Resource.TOKENS, Resource.SPEND)

_MULTIPLES: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
# What can be read in two ways, such as `1,5` or `5m`, is not read at all; the digits are spelled out because `\\d` matches far more than ASCII.
_AMOUNT: Final = re.compile(r"(-?)(\$?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.([0-9]{1,18}))?([kKMB]?)\Z").match
_AMOUNT_LENGTH_MAX: Final = 40
_DURATION: Final = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d|w)\Z", re.ASCII).match
_DURATION_US: Final = {"ms": 1_000, "s": SECOND_US, "m": 60 * SECOND_US, "h": 3_600 * SECOND_US, "d": DAY_US, "w": 7 * DAY_US}
_MODEL: Final = re.compile(r"[A-Za-z0-9._:@/\-*?\[\]!]{1,200}\Z").match
_MODEL_ID: Final = re.compile(r"[A-Za-z0-9._:@/\-]{1,200}\Z").match


# Reading.


def parse_resource(text: str) -> Resource:
    """The resource of that name; raises ValueError."""
    try:
        return Resource(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is nothing that can be limited; there are {', '.join(Resource)}") from None


def parse_action(text: str) -> Action:
    """The action of that name; raises ValueError."""
    try:
        return Action(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no action; there are {', '.join(Action)}") from None


def parse_amount(resource: Resource, written: str | int) -> int:
    """The amount in units of the resource: spend is written in USD, all else as a count; both may end in k, M or B. Raises ValueError.

    A float is refused whatever it holds: `0.1` is not a tenth in it.
    """
    if isinstance(written, bool) or not isinstance(written, str | int):
        example = '"12.50"' if resource is Resource.SPEND else '"250k"'
        raise ValueError(f"{written!r} is not an exact amount; write it in quotes, such as {example}")  # noqa: TRY004 - it is what a person wrote
    text, is_spend = str(written).strip(), resource is Resource.SPEND
    found = _AMOUNT(text) if len(text) <= _AMOUNT_LENGTH_MAX else None
    if found is None or (found[2] and not is_spend):
        raise ValueError(
            f"{text[:_AMOUNT_LENGTH_MAX]!r} is not {'an amount of US dollars' if is_spend else 'a count'}; write it like {_example(resource)}"
        )
    sign, _, whole, decimals, times = found.groups(default="")
    exact = Fraction(int(re.sub("[,_]", "", whole) + decimals), 10 ** len(decimals)) * _MULTIPLES[times] * (NANOS_PER_USD if is_spend else 1)
    if exact.denominator != 1:
        finer = "is finer than a nano-dollar; nine decimals are the most" if is_spend else "is not a whole number"
        raise ValueError(f"{text!r} {finer}; write it like {_example(resource)}")
    if sign or exact < 1:
        raise ValueError(f"{text!r} is too little; an amount is above zero")
    if exact > AMOUNT_MAX:
        raise ValueError(f"{text!r} is more than can be counted exactly; the most is {amount_text(resource, AMOUNT_MAX)}")
    return int(exact)


def amount_text(resource: Resource, amount: int) -> str:
    """An amount for people, exactly: `$1,234.50` of spend, `250,000` of anything else. `parse_amount` reads it back."""
    if resource is not Resource.SPEND:
        return f"{amount:,}"
    whole, rest = divmod(abs(amount), NANOS_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}${whole:,}.{decimals}"


def parse_duration_us(text: str) -> Micros:
    """A duration such as `60s`, `5m` or `24h`; raises ValueError."""
    found = _DURATION(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5m, 24h or 7d")
    return int(found[1]) * _DURATION_US[found[2]]


def duration_text(duration_us: Micros) -> str:
    """The duration in the largest unit that has no remainder: `90s`, `24h`, `7d`."""
    unit = next((name for name in ("d", "h", "m", "s", "ms") if duration_us % _DURATION_US[name] == 0), "")
    return f"{duration_us // _DURATION_US[unit]}{unit}" if unit else f"{duration_us}us"


# Checking.


def check_limit(limit: Limit) -> None:
    """Raise ValueError, with one sentence, for the first thing about the limit that cannot be meant."""
    for _, problem in problems_of(limit):
        raise ValueError(problem)


def problems_of(limit: Limit) -> list[tuple[str, str]]:
    """Everything about the limit that cannot be meant: the part, as the policy file names it, and one sentence."""
    return [
        *_text_problems(limit),
        *_scope_problems(limit.scope),
        *_amount_problems(limit),
        *_window_problems(limit),
        *_model_problems(limit),
        *_action_problems(limit),
    ]


def _text_problems(limit: Limit) -> list[tuple[str, str]]:
    found = []
    if not 1 <= len(limit.name.strip()) <= NAME_LENGTH_MAX or not limit.name.isprintable():
        found.append(("name", f"the name of a limit takes 1 to {NAME_LENGTH_MAX} printable characters, not {limit.name!r}"))
    if len(limit.contact) > CONTACT_LENGTH_MAX or not limit.contact.isprintable():
        found.append(("contact", f"a contact takes up to {CONTACT_LENGTH_MAX} printable characters in one line"))
    return found


def _scope_problems(scope: Scope) -> list[tuple[str, str]]:
    found = []
    if scope.per and scope.per not in SEATS:
        found.append(("per", f"{scope.per!r} cannot have an amount each; a limit is per {', '.join(SEATS[:-1])} or {SEATS[-1]}"))
    if scope.per == "team" and (scope.team_id or scope.key_id):
        found.append(("per", "an amount for each team needs the whole organization as its scope"))
    if scope.per in ("key", "user") and scope.key_id:
        found.append(("per", f"a single key has no other {'keys' if scope.per == 'key' else 'users'} in it; leave `per` out"))
    if scope.key_id and (scope.user or scope.tag):
        part = "user" if scope.user else "tag"
        found.append((part, f"a key has its {'owner' if scope.user else 'tags'} already; name either the key or the {part}"))
    if scope.per == "user" and scope.user:
        found.append(("per", f"the limit is for the user {scope.user!r} alone; leave `per` out"))
    if scope.per == "session" and scope.session:
        found.append(("per", f"the limit is for the session {scope.session!r} alone; leave `per` out"))
    found += [
        (part, f"the {part} of a limit takes up to {CONTACT_LENGTH_MAX} printable characters, not {text!r}")
        for part, text in (("user", scope.user), ("tag", scope.tag), ("session", scope.session))
        if len(text) > CONTACT_LENGTH_MAX or not text.isprintable()
    ]
    return found


def _amount_problems(limit: Limit) -> list[tuple[str, str]]:
    if 1 <= limit.amount <= AMOUNT_MAX:
        return []
    return [("amount", f"an amount of {limit.resource} is above zero and at most {amount_text(limit.resource, AMOUNT_MAX)}")]


def _window_problems(limit: Limit) -> list[tuple[str, str]]:
    if limit.resource is Resource.CONCURRENCY:
        return [] if limit.window is None else [("window", "concurrency is what runs at the same time and has no window; leave it out")]
    match limit.window:
        case None:
            return [("window", f"a limit on {limit.resource} needs a window: rolling:60s, day, week, month, quarter, year or every:14d")]
        case Rolling(period_us=period_us, burst=burst):
            if not SECOND_US <= period_us <= PERIOD_US_MAX:
                return [("window", f"a rolling window lasts between 1s and 366d, not {duration_text(period_us)}")]
            if not 0 <= burst <= AMOUNT_MAX:
                return [("window", f"a burst lies between 0 and {amount_text(limit.resource, AMOUNT_MAX)}, not {amount_text(limit.resource, burst)}")]
            return []
        case Cycle() as cycle:
            try:
                bounds(cycle, 0)
            except ValueError as error:
                return [(next((part for part in ("timezone", "anchor") if str(error).startswith(part)), "window"), str(error))]
            return []


def _model_problems(limit: Limit) -> list[tuple[str, str]]:
    found = [
        ("models", f"{pattern!r} is not a model; write an id such as claude-haiku-4-5 or a pattern such as claude-haiku-*")
        for pattern in limit.models
        if not _MODEL(pattern)
    ]
    if len(limit.models) > MODELS_MAX:
        found.append(("models", f"a limit takes at most {MODELS_MAX} models or patterns, not {len(limit.models)}"))
    return found


def _action_problems(limit: Limit) -> list[tuple[str, str]]:
    found = []
    action, resource = limit.action, limit.resource
    if action is Action.QUEUE:
        if not 1 <= limit.queue_ms <= QUEUE_MS_MAX:
            found.append(("queue_for", f"the action queue needs the longest wait, up to {duration_text(QUEUE_MS_MAX * 1_000)}, such as 30s"))
        if resource is Resource.REQUESTS and isinstance(limit.window, Cycle):
            found.append(
                ("action", "requests of a calendar window do not come back before it ends, so waiting is in vain; use block or a rolling window")
            )
    elif limit.queue_ms:
        found.append(("queue_for", f"only the action queue has a longest wait, not {action}"))
    if action is Action.DOWNGRADE:
        found += _downgrade_problems(limit)
    elif limit.downgrade_to:
        found.append(("to", f"only the action downgrade names another model, not {action}"))
    if action is Action.END and resource not in _OUTGROWN:
        found.append(("action", f"a stream cannot outgrow what it took of {resource}; end is for {', '.join(_OUTGROWN)}"))
    if limit.carry_over and not isinstance(limit.window, Cycle):
        found.append(("carry_over", "carry_over takes overshoot into the next cycle, and only a calendar window has one"))
    return found


def _downgrade_problems(limit: Limit) -> list[tuple[str, str]]:
    target = limit.downgrade_to
    if not target or not _MODEL_ID(target):
        return [("to", f"the action downgrade needs the id of the other model, such as claude-haiku-4-5, not {target!r}")]
    if covers(limit, target):
        return [
            ("models", f"the limit covers {target} too and would have no room for it there either; name the models it is for, such as claude-opus-*")
        ]
    return []


def _example(resource: Resource) -> str:
    return "12.50, 250 or 1.5k" if resource is Resource.SPEND else "500, 10_000, 250k or 1.5M"
