"""What makes a limit or a grant one that can be meant: every contradiction is found before anything is stored, and named in one sentence.

The rule it protects: whatever way a limit comes in (command line, policy file, console), the same things are refused. Pure: whether a team or key
exists is asked elsewhere (`limiting`). Change with it: `limit.py`, docs/LIMITS.md.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tokenweir.limits.amounts import checked_amount
from tokenweir.limits.limit import AMOUNT_MAX, Action, Cycle, Limit, Resource, Rolling, Scope, covers

MODELS_MAX: Final = 100
"""Most models or patterns that one limit may list."""
QUEUE_MS_MAX: Final = 600_000
"""Longest wait of a queued request; the clients' own deadline is ten minutes."""
GROWING: Final = frozenset({Resource.OUTPUT_TOKENS, Resource.TOKENS, Resource.SPEND})
"""Resources of which a stream uses more while it runs."""

_MODEL_PATTERN: Final = re.compile(r"[A-Za-z0-9._:@/\-*?\[\]!]{1,200}\Z").match
_SEATS: Final = ("", "team", "key", "user", "session")


def check_limit(limit: Limit) -> None:
    """Raise ValueError, with one sentence that names the field and what would be right, for the first thing that contradicts itself."""
    checked_amount(limit.amount, limit.resource)
    _check_window(limit)
    _check_scope(limit.scope)
    _check_models(limit.models)
    _check_action(limit)
    if limit.carry_over and not isinstance(limit.window, Cycle):
        raise ValueError("carry-over takes from the next cycle what was used too much in this one; give a calendar window such as month")


def checked_model(pattern: str) -> str:
    """A model id or pattern, trimmed; raises ValueError."""
    pattern = pattern.strip()
    if not _MODEL_PATTERN(pattern):
        raise ValueError(f"{pattern!r} is not a model; write an id such as claude-haiku-4-5 or a pattern such as claude-haiku-*")
    return pattern


def counts_the_same(one: Limit, other: Limit) -> bool:
    """Whether the two count the same use, so that the buckets of one are right for the other.

    They may differ in how much there is (amount, burst), in what happens then, and in who is told.
    """
    return _counted(one) == _counted(other)


def _counted(limit: Limit) -> tuple[Scope, Resource, Cycle | int | None, frozenset[str]]:
    window = limit.window.period_us if isinstance(limit.window, Rolling) else limit.window
    return limit.scope, limit.resource, window, frozenset(limit.models)


def _check_window(limit: Limit) -> None:
    if limit.resource is Resource.CONCURRENCY:
        if limit.window is not None:
            raise ValueError("concurrency counts requests at the same time and takes no window; leave the window out")
        return
    if limit.window is None:
        raise ValueError(f"a limit on {limit.resource.replace('_', ' ')} needs a window, such as rolling:60s, day or month")
    if isinstance(limit.window, Rolling) and not 0 <= limit.window.burst <= AMOUNT_MAX:
        raise ValueError(f"burst {limit.window.burst:,} cannot be; leave it out for the whole amount")


def _check_scope(scope: Scope) -> None:
    if not scope.organization_id:
        raise ValueError("a limit belongs to an organization, one of its teams or one key; say which")
    if scope.per not in _SEATS:
        raise ValueError(f"per {scope.per!r} is not known; one of team, key, user, session gets a share of its own")
    contradictions = {
        "team": (
            scope.team_id or scope.key_id,
            "a limit of one team or key has nothing to share out per team; leave per=team out, or set it on --org",
        ),
        "key": (scope.key_id, "a limit of one key has nothing to share out per key; leave per=key out, or set it on the team"),
        "user": (scope.user or scope.key_id, "a limit of one user or key has nothing to share out per user; leave per=user out, or widen the scope"),
        "session": (scope.session, "a limit of one session has nothing to share out per session; leave one of the two out"),
    }
    wrong, sentence = contradictions.get(scope.per, ("", ""))
    if wrong:
        raise ValueError(sentence)


def _check_models(models: tuple[str, ...]) -> None:
    if len(models) > MODELS_MAX:
        raise ValueError(f"a limit lists at most {MODELS_MAX} models, not {len(models)}; a pattern such as claude-haiku-* stands for many")
    for pattern in models:
        checked_model(pattern)


def _check_action(limit: Limit) -> None:
    queues = limit.action is Action.QUEUE
    if queues and not 1 <= limit.queue_ms <= QUEUE_MS_MAX:
        raise ValueError(f"a queued request waits at most 600s and at least 1ms, not {limit.queue_ms}ms; say for how long, such as 30s")
    if not queues and limit.queue_ms:
        raise ValueError(f"a deadline of {limit.queue_ms}ms goes with the action queue, not with {limit.action}; leave it out, or queue")
    if limit.action is Action.END and limit.resource not in GROWING:
        raise ValueError(
            f"the action end is for what grows while an answer is streamed (output_tokens, tokens, spend), not {limit.resource}; block instead"
        )
    if limit.action is not Action.DOWNGRADE:
        if limit.downgrade_to:
            raise ValueError(f"the model {limit.downgrade_to!r} to send to goes with the action downgrade, not with {limit.action}")
        return
    _check_downgrade(limit)


def _check_downgrade(limit: Limit) -> None:
    if not limit.downgrade_to:
        raise ValueError("the action downgrade needs the model to send to; name it, such as claude-haiku-4-5")
    if checked_model(limit.downgrade_to) != limit.downgrade_to or any(sign in limit.downgrade_to for sign in "*?[]!"):
        raise ValueError(f"{limit.downgrade_to!r} is not one model to send to; write an id such as claude-haiku-4-5")
    if limit.models and covers(limit, limit.downgrade_to):
        raise ValueError(
            f"the limit covers {limit.downgrade_to} itself, so nothing would be gained by sending to it; name models without it, or another one"
        )
    if not limit.models and limit.resource is not Resource.SPEND:
        raise ValueError(
            f"the limit covers every model, so {limit.downgrade_to} would count in it just as much; name the models it is for, such as claude-opus-*"
        )


def changed_fields(before: Limit, after: Limit) -> tuple[str, ...]:
    """The names of fields in which they differ, in the order of the fields; ids and times of creation aside."""
    fields = (field.name for field in msgspec.structs.fields(Limit))
    return tuple(name for name in fields if name not in ("limit_id", "created_at_us") and getattr(before, name) != getattr(after, name))
