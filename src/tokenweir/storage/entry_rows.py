"""Rows of entries: how an entry becomes a row of the table and comes back as it was.

The rule it protects: what is read equals what was booked, in both databases. Change with it: `schema.py`, `ledger/entries.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from sqlalchemy import Text, select

from tokenweir.ledger.entries import Entry
from tokenweir.storage.schema import ENTRIES
from tokenweir.usage import Certainty, Usage

IDS_PER_QUERY: Final = 500
_USAGE_NAMES: Final = Usage.__struct_fields__
_PLAIN_NAMES: Final = tuple(name for name in Entry.__struct_fields__ if name not in ("usage", "certainty", "stream", "tags", "flags"))
COLUMNS: Final = (*_PLAIN_NAMES, *_USAGE_NAMES, "certainty", "stream", "tags", "flags")
_PLAIN: Final = len(_PLAIN_NAMES)
SELECT: Final = select(*[ENTRIES.c[name] for name in COLUMNS])
_CERTAINTIES: Final = {certainty.value: certainty for certainty in Certainty}
_plain_values = attrgetter(*_PLAIN_NAMES)
_TEXT_NAMES: Final = tuple(name for name in _PLAIN_NAMES if isinstance(ENTRIES.c[name].type, Text))
_text_values = attrgetter(*_TEXT_NAMES)
_usage_values = attrgetter(*_USAGE_NAMES)
_strings = msgspec.json.Decoder(tuple[str, ...]).decode


def as_json(strings: Sequence[str]) -> str:
    """Strings as the columns `tags` and `flags` hold them."""
    return msgspec.json.encode(strings).decode() if strings else "[]"


def storable(entry: Entry) -> Entry:
    """The entry without the one character that PostgreSQL does not have; both stores hold the same."""
    if "\0" not in "".join(_text_values(entry)):
        return entry
    return replace(entry, **{name: getattr(entry, name).replace("\0", "\ufffd") for name in _TEXT_NAMES})


def row_of(entry: Entry) -> tuple[Any, ...]:
    """The values in the order of `COLUMNS`."""
    return (
        *_plain_values(entry),
        *_usage_values(entry.usage),
        entry.certainty.value,
        int(entry.stream),
        as_json(entry.tags),
        as_json(entry.flags),
    )


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry of a row in the order of `COLUMNS`."""
    plain, usage, (certainty, stream, tags, flags) = row[:_PLAIN], row[_PLAIN:-4], row[-4:]
    fields = dict(zip(_PLAIN_NAMES, plain, strict=True))
    fields["raw_usage"] = bytes(fields["raw_usage"])
    return Entry(
        **fields,
        usage=Usage(*usage),
        certainty=_CERTAINTIES[certainty],
        stream=bool(stream),
        tags=() if tags == "[]" else _strings(tags),
        flags=() if flags == "[]" else _strings(flags),
    )
