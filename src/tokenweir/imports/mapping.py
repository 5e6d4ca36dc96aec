"""Any other CSV or JSON: a mapping, written down in TOML, says which column is what.

The rule it protects: nothing is guessed. The mapping names the column of each fact and says whether the prompt includes the cache; a row is told apart by an
id that the file states; a mapping with a name we do not know is refused whole. Change with it: docs/IMPORTS.md, which shows one.
"""

from __future__ import annotations

import tomllib
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import msgspec

from tokenweir.imports.fields import FLAG_CACHE_UNSAID, Row, count, is_claude, metered, moment, needed, plain_model, text
from tokenweir.ledger.imported import ImportedCall
from tokenweir.ledger.sources import GENERIC
from tokenweir.periods import SECOND_US, Micros
from tokenweir.usage import Usage


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[columns]`: for each fact the name of a column; in JSON, dots lead into objects."""

    started_at: str
    model: str
    input: str
    output: str
    message_id: str = ""
    request_id: str = ""
    row_id: str = ""
    """Tells rows apart that have no id of the provider."""
    ended_at: str = ""
    cache_read: str = ""
    cache_write_5m: str = ""
    cache_write_1h: str = ""
    thinking: str = ""
    web_searches: str = ""
    service_tier: str = ""
    stop_reason: str = ""
    session_id: str = ""
    agent_id: str = ""
    person: str = ""
    project: str = ""


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping file."""

    name: str
    """Of the system the file comes from: ids of rows are told apart by it."""
    columns: Columns
    input_includes_cache: bool = False
    """Whether the column `input` counts cache reads and writes as well."""
    time: Literal["rfc3339", "seconds", "milliseconds", "microseconds"] = "rfc3339"
    """How times are written; the last three count from 1970 UTC."""


def parse_mapping(content: str) -> Mapping:
    """Read a mapping file; raises ValueError with a sentence."""
    try:
        mapping = msgspec.convert(tomllib.loads(content), Mapping)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the mapping is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ValueError(f"the mapping cannot be used: {error}") from error
    columns = mapping.columns
    if not (columns.message_id or columns.request_id or columns.row_id):
        raise ValueError("the mapping names no column of message_id, request_id or row_id, so a row could be booked twice")
    if not mapping.name.strip():
        raise ValueError("the mapping has no name")
    return mapping


def read(row: Row, mapping: Mapping) -> ImportedCall | None:
    """The call of a row; None if it is none to the Claude API. Raises ValueError with the reason if it cannot be believed."""
    columns = mapping.columns
    facts = {name: _at(row, getattr(columns, name)) for name in Columns.__struct_fields__ if getattr(columns, name)}
    model = text(facts, "model")
    if not model:
        raise ValueError("model is missing")
    if not is_claude(model):
        return None
    row_id = text(facts, "row_id")
    if not (row_id or text(facts, "message_id") or text(facts, "request_id")):
        raise ValueError("no id is stated")
    uncached, output = needed(facts, "input"), needed(facts, "output")
    classes = [count(facts, name) for name in ("cache_write_5m", "cache_write_1h", "cache_read")]
    write_5m, write_1h, read = (number or 0 for number in classes)
    if mapping.input_includes_cache:
        uncached -= write_5m + write_1h + read
        if uncached < 0:
            raise ValueError("input is smaller than the part of it that was cached")
    thinking = count(facts, "thinking") or 0
    if thinking > output:
        raise ValueError("thinking is greater than output, of which it is a part")
    usage = Usage(uncached, write_5m, write_1h, read, output, thinking, count(facts, "web_searches") or 0)
    flags = (FLAG_CACHE_UNSAID,) if all(number is None for number in classes) else ()
    model = plain_model(model)
    return ImportedCall(
        source=GENERIC,
        started_at_us=_moment(facts, "started_at", mapping.time),
        ended_at_us=_moment(facts, "ended_at", mapping.time) if text(facts, "ended_at") else 0,
        metered=metered(model, usage, flags=flags, service_tier=text(facts, "service_tier")),
        message_id=text(facts, "message_id"),
        request_id=text(facts, "request_id"),
        own_id=f"{mapping.name}:{row_id}" if row_id else "",
        stop_reason=text(facts, "stop_reason"),
        session_id=text(facts, "session_id"),
        agent_id=text(facts, "agent_id"),
        client=mapping.name,
        person=text(facts, "person"),
        project=text(facts, "project"),
    )


def _at(row: Row, path: str) -> Any:
    """The value of a column; a name that is no column leads into objects by its dots."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _moment(facts: Row, name: str, unit: str) -> Micros:
    if unit == "rfc3339":
        return moment(facts, name)
    try:
        number = Decimal(text(facts, name))
    except InvalidOperation:
        raise ValueError(f"{name} is no number of {unit}") from None
    at_us = number * {"seconds": SECOND_US, "milliseconds": 1_000, "microseconds": 1}[unit]
    if not at_us.is_finite() or not 0 <= at_us < 253_402_300_800 * SECOND_US:
        raise ValueError(f"{name} is no time in {unit}")
    return int(at_us)
