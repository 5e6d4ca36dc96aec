"""Answers: what was gathered from transcripts, one fixed record per answer of the API, whatever number of lines told of it.

The rule it protects: the same answers come out whatever order files and parts of files are read in, by however many processes. A record is packed so that
of two records of one answer the fuller is the greater string of bytes (`wire.transcripts.rank` comes first); to merge is to keep the maximum. A million
answers fit in about 250 MB, so a tree ten times the size of a large one is read in ordinary memory. Change together with `wire/transcripts.py`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import msgspec

from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import cost_nanos
from tokenweir.wire.transcripts import RANK_BYTES, TranscriptRow, rank

BY_SUBAGENT = 1
"""A sub-agent wrote it; its transcript may have missed the final counts."""
UNFINISHED = 2
"""No line of it states how it ended, so its output may be a placeholder."""
DOUBTED = 4
"""Something in it could not be believed, or is missing."""
UNPRICED = 8
"""The rate card has no rate for its model at its time; a conservative one was taken."""
REASONS = (BY_SUBAGENT, UNFINISHED, DOUBTED, UNPRICED)

_COUNT_MAX = 2**32 - 1
_BODY = struct.Struct(">8s8s8s7IqB")
_ALL = struct.Struct(">?Q??Q8s8s8s8s7IqB")
_LATE = 1 << 62
_NOBODY = b"\0" * 8


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One answer: when, where, how much of each class, and what it costs."""

    at_us: Micros
    session: str
    project: str
    model: str
    counts: tuple[int, int, int, int, int, int, int]
    """The token classes in the order of `Usage`, thinking, web searches."""
    cost_nanos: Nanos
    doubts: int
    """The reasons, added up, for which it is an estimate; 0 if it is not."""


class Answers:
    """A set of answers to add rows to, and to merge with others. Its two tables can be sent between processes as they are."""

    def __init__(self, packed: dict[bytes, bytes] | None = None, names: dict[bytes, str] | None = None) -> None:
        self.packed = {} if packed is None else packed
        """By the digest of message and request: the packed record."""
        self.names = {} if names is None else names
        """What the digests in records stand for: sessions, projects, models."""
        self._digests: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self.packed)

    def add(self, row: TranscriptRow, card: RateCard) -> None:
        """Take a row; what it costs is worked out at its own time."""
        key = self._key(row)
        standing = self.packed.get(key)
        ranked = rank(row)
        if standing is not None and ranked < standing[:RANK_BYTES]:
            return
        usage = row.metered.usage
        nanos, unpriced = cost_nanos(card, row.metered, at_us=row.at_us)
        body = _BODY.pack(
            self._name(row.session_id),
            self._name(row.cwd),
            self._name(card.resolve(row.metered.model) or row.metered.model),
            usage.uncached_input,
            usage.cache_write_5m,
            usage.cache_write_1h,
            usage.cache_read,
            usage.output,
            usage.thinking,
            min(usage.web_searches, _COUNT_MAX),
            nanos,
            _doubts(row, unpriced=unpriced),
        )
        record = ranked + body
        if standing is None or record > standing:
            self.packed[key] = record

    def merge(self, packed: dict[bytes, bytes], names: dict[bytes, str]) -> None:
        """Take the tables of another set."""
        self.names.update(names)
        mine = self.packed
        for key, record in packed.items():
            standing = mine.get(key)
            if standing is None or record > standing:
                mine[key] = record

    def settle(self) -> None:
        """Give the records that name a message but no request to the answer of that message, if one is known: old versions left the request out."""
        nameless = [key for key in self.packed if key[8:] == _NOBODY]
        if not nameless:
            return
        wanted = {key[:8] for key in nameless}
        owners: dict[bytes, bytes] = {}
        for key in self.packed:
            if key[:8] in wanted and key[8:] != _NOBODY:
                # Of several answers by one name the least key, so that the choice is the same every time.
                owners[key[:8]] = min(key, owners.get(key[:8], key))
        for key in nameless:
            owner = owners.get(key[:8])
            if owner is not None:
                record = self.packed.pop(key)
                self.packed[owner] = max(record, self.packed[owner])

    def __iter__(self) -> Iterator[Answer]:
        names = self.names
        for record in self.packed.values():
            _, _, _, _, late, _, session, project, model, a, b, c, d, e, thinking, searches, nanos, doubts = _ALL.unpack(record)
            yield Answer(_LATE - late, names[session], names[project], names[model], (a, b, c, d, e, thinking, searches), nanos, doubts)

    def _name(self, name: str) -> bytes:
        digest = self._digests.get(name)
        if digest is None:
            digest = self._digests[name] = _digest(name)
            self.names[digest] = name
        return digest

    def _key(self, row: TranscriptRow) -> bytes:
        if not row.message_id:
            return _digest(row.key, 16)
        return _digest(row.message_id) + (_digest(row.request_id) if row.request_id else _NOBODY)


def _digest(name: str, size: int = 8) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=size).digest()


def _doubts(row: TranscriptRow, *, unpriced: bool) -> int:
    found = UNPRICED if unpriced else 0
    if row.sidechain:
        found |= BY_SUBAGENT
    elif not row.stop_reason:
        found |= UNFINISHED
    elif row.estimated:
        found |= DOUBTED
    return found
