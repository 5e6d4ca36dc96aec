"""Fields of foreign rows, read with suspicion, and the question that every export raises: whether the prompt they count includes what came from the cache.

The rule it protects: a number that cannot be a count is refused with the name of its field, never read as 0; a prompt is split into classes only as the row
itself says, and where it contradicts itself it is refused. Rows come from CSV (all text) and from JSON (typed); both read the same. Change with it: the
module of each format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

import msgspec

from tokenweir.periods import Micros, parse_instant
from tokenweir.usage import Metered, Segment, Usage
from tokenweir.wire.usage_fields import COUNT_MAX, is_bad, read_metered

Row: TypeAlias = Mapping[str, Any]

FLAG_CACHE_UNSAID: Final = "cache_split_unsaid"
"""The row says nothing of the prompt cache: the whole prompt was taken as uncached input."""
_ABSENT: Final = (None, "", "null", "NULL", "\\N")


def first(row: Row, *names: str) -> Any:
    """The first of the fields that says anything; None if none does."""
    for name in names:
        value = row.get(name)
        if value is not None and (not isinstance(value, str) or value.strip() not in _ABSENT):
            return value
    return None


def text(row: Row, *names: str) -> str:
    """A field of text; empty if it is not there."""
    value = first(row, *names)
    return value.strip() if isinstance(value, str) else "" if value is None or isinstance(value, dict | list) else str(value)


def count(row: Row, *names: str) -> int | None:
    """A count; None if nothing is said. Raises ValueError for what is no count."""
    value = first(row, *names)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{names[0]} is no count")  # noqa: TRY004 - what the row says is wrong, not our call
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError(f"{names[0]} is no count: {str(value)[:40]!r}") from None
    if not number.is_finite() or number != number.to_integral_value() or not 0 <= number <= COUNT_MAX:
        raise ValueError(f"{names[0]} is no count: {str(value)[:40]!r}")
    return int(number)


def needed(row: Row, *names: str) -> int:
    """A count without which there is nothing to book."""
    value = count(row, *names)
    if value is None:
        raise ValueError(f"{names[0]} is missing")
    return value


def moment(row: Row, *names: str) -> Micros:
    """A time; one without a zone is UTC, as these programs write it. Raises ValueError if there is none that can be."""
    value = text(row, *names)
    if not value:
        raise ValueError(f"{names[0]} is missing")
    at_us = parse_instant(value)
    if at_us < 0:
        raise ValueError(f"{names[0]} lies before 1970: {value[:40]!r}")
    return at_us


def part(row: Row, *names: str) -> dict[str, Any]:
    """A field that holds an object, in JSON or as text; empty if it is not there. Raises ValueError for anything else."""
    value = first(row, *names)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{names[0]} is not JSON") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{names[0]} is no object")  # noqa: TRY004 - as above
    return value


def listed(row: Row, *names: str) -> tuple[str, ...]:
    """A field that holds a list of text, in JSON or as text separated by commas."""
    value = first(row, *names)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = value.split(",")
    return tuple(one.strip() for one in value if isinstance(one, str) and one.strip()) if isinstance(value, list) else ()


def is_claude(model: str) -> bool:
    """Whether a model is one of the Claude API, by its name."""
    return "claude" in model.lower()


def plain_model(model: str) -> str:
    """The model without the name of the provider that routers put before it."""
    return model.strip().removeprefix("anthropic/")


def split_prompt(prompt: int, *, write_5m: int, write_1h: int, read: int, output: int, total: int | None) -> int:
    """The uncached input, when a row counts a prompt and the cache separately: its total tells whether the prompt includes the cache.

    Raises ValueError if it does neither, because then one of the numbers is not what its name says.
    """
    cached = write_5m + write_1h + read
    if not cached or total == prompt + output + cached:
        return prompt
    if total == prompt + output or total is None:
        if prompt < cached:
            raise ValueError(f"prompt of {prompt} tokens is smaller than the {cached} of it that were cached")
        return prompt - cached
    raise ValueError(f"total of {total} tokens is neither with nor without the {cached} cached ones")


def own_usage(usage: Mapping[str, Any], model: str) -> Metered | None:
    """The metered usage, if the row kept the provider's own usage object; None if it is another program's."""
    if not {"input_tokens", "output_tokens"} <= usage.keys() or "prompt_tokens" in usage:
        return None
    metered = read_metered(dict(usage), model=model)
    if is_bad(metered.flags):
        raise ValueError(f"usage cannot be believed: {', '.join(metered.flags)}")
    return metered


def metered(model: str, usage: Usage, *, flags: tuple[str, ...] = (), service_tier: str = "") -> Metered:
    """Counts of a row as something that can be priced."""
    return Metered(model, usage, (Segment("message", model, usage),), service_tier=service_tier, flags=flags)


def as_raw(usage: Mapping[str, Any]) -> bytes:
    """The provider's usage object as it is kept with an entry."""
    return msgspec.json.encode(usage)


def provider_ids(name: str) -> tuple[str, str]:
    """Message id and request id, if the id of a row is one of the provider's."""
    return (name if name.startswith("msg_") else ""), (name if name.startswith("req_") else "")
