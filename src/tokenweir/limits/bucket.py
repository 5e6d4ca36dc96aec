"""A bucket: the counter behind one limit, for one seat and one cycle. What a store needs to know of it, and what it answers.

The rule it protects: `used + held + asked <= room`, for every enforced bucket of a request at once, or for none of them. What is held is what
requests under way may still use; it never flows back by itself. Change with it: `buckets.py` (the arithmetic), `storage/limit_valkey.py` (the same
arithmetic in a script), `limit_ports.py`.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from tokenweir.periods import Micros

NEVER = -1
"""A wait that does not end: more was asked for than there can ever be room for."""


class Kind(enum.IntEnum):
    """How the use of a bucket ends."""

    COUNTER = 0
    """Of a calendar cycle: what is used stays used until the cycle is over, and then the bucket is another one."""
    LEVEL = 1
    """Of a rolling window: what is used flows out at `refill` units per `period_us`, evenly (GCRA, see `gcra.py`)."""
    GAUGE = 2
    """Of concurrency: nothing is ever used, only held."""


class Bucket(msgspec.Struct, frozen=True):
    """One bucket as a request meets it."""

    bucket_id: str
    """`LIMIT_ID|SEAT`, and for a counter `LIMIT_ID|SEAT|START_US` of its cycle."""
    kind: Kind
    room: int
    """The most that used and held may come to: the amount with its grants, or the burst of a rolling limit."""
    enforced: bool = True
    """False (shadow, warn): it counts and tells, and never refuses."""
    taken: bool = False
    """What is asked for is used at once and not held (requests)."""
    ends_streams: bool = False
    """A stream that asks for more than there is room for is ended (action `end`)."""
    refill: int = 0
    period_us: int = 0
    fresh: bool = False
    """If the store does not have it, nothing was used of it; otherwise the ledger must be asked first."""
    ends_us: Micros = 0
    """When a counter's cycle ends: a while after that the store may forget it."""


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How a bucket stands: `used` is rounded up to whole units for a level."""

    used: int = 0
    held: int = 0


class Shortage(msgspec.Struct, frozen=True, gc=False):
    """A bucket that has no room for what was asked."""

    index: int
    """Which of the buckets that were asked."""
    standing: Standing
    wait_us: int
    """When a level will have room, if nothing more is used and nothing is given back; NEVER if it cannot; 0 where time alone does not decide."""


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """There was room in all of them, and it is taken."""

    standings: tuple[Standing, ...]
    """After it was taken, in the order of the buckets."""
    over: tuple[int, ...] = ()
    """Buckets that are not enforced and had no room."""


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Some had no room; nothing was changed."""

    shortages: tuple[Shortage, ...]


class Unseeded(msgspec.Struct, frozen=True, gc=False):
    """The store does not know these buckets and must be told from the ledger what was used of them; nothing was changed."""

    indices: tuple[int, ...]


Outcome: TypeAlias = Reserved | Refused | Unseeded


class Seed(msgspec.Struct, frozen=True):
    """What the ledger says was used of a bucket, as of a moment."""

    bucket: Bucket
    used: int
    at_us: Micros
    included: tuple[str, ...] = ()
    """Ids of recent adjustments that are in it already; they must not be charged again."""
    read_us: Micros = 0
    """What was settled before `at_us` is in it, and nothing that was settled after this; 0: nobody can say."""


class Hold(msgspec.Struct, frozen=True):
    """What one request holds."""

    hold_id: str
    """The request's id."""
    owner: str
    """The journal writer of the gateway process that took it."""
    units: tuple[tuple[str, int], ...]
    """Bucket id and units held (0 for what was taken at once)."""
