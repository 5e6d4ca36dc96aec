"""How buckets, units and holds are written for the scripts of the shared store of limits, and how their answers are read.

The rule it protects: numbers travel as 64-bit integers, never as text, which Lua would round; what is packed here is read in `limit_scripts/common.lua` (`read_buckets`, `units_at`), field by field in the same order. A hold as
the store keeps it is its owner, its buckets and the units asked of each. Change with it: the scripts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from tokenweir.limits.bucket import NEVER, Bucket, Hold, Shortage, Standing
from tokenweir.limits.gcra import wait_us

SAFE: Final = 2**53 - 1
"""Beyond this a script cannot tell one whole number from the next."""

_BUCKET: Final = struct.Struct("<BBBBBqqqqH")
_COUNT: Final = struct.Struct("<H")


def pack_buckets(buckets: Sequence[Bucket]) -> bytes:
    """How many there are, and each with its id."""
    parts = [_COUNT.pack(len(buckets))]
    for bucket in buckets:
        bucket_id = bucket.bucket_id.encode()
        parts.append(
            _BUCKET.pack(
                bucket.kind,
                bucket.enforced,
                bucket.taken,
                bucket.ends_streams,
                bucket.fresh,
                max(-SAFE, min(bucket.room, SAFE)),
                bucket.refill,
                bucket.period_us,
                bucket.ends_us,
                len(bucket_id),
            )
        )
        parts.append(bucket_id)
    return b"".join(parts)


def pack_units(units: Iterable[int]) -> bytes:
    """The numbers in their order; those that no script can count are the most there is."""
    numbers = tuple(max(-SAFE, min(number, SAFE)) for number in units)
    return struct.pack(f"<{len(numbers)}q", *numbers)


def unpack_hold(hold_id: str, packed: bytes) -> Hold:
    """A hold as the scripts keep it."""
    (length,) = _COUNT.unpack_from(packed)
    position = _COUNT.size + length
    owner = packed[_COUNT.size : position].decode()
    (count,) = _COUNT.unpack_from(packed, position)
    position += _COUNT.size
    buckets: list[tuple[str, bool]] = []
    for _ in range(count):
        _, _, taken, _, _, _, _, _, _, length = _BUCKET.unpack_from(packed, position)
        position += _BUCKET.size
        buckets.append((packed[position : position + length].decode(), bool(taken)))
        position += length
    units = struct.unpack_from(f"<{count}q", packed, position)
    return Hold(hold_id, owner, tuple((bucket_id, 0 if taken else held) for (bucket_id, taken), held in zip(buckets, units, strict=True)))


def unpack_shortages(reply: list[int], units: Sequence[int]) -> tuple[Shortage, ...]:
    """What a script says of each bucket without room: its place, used, rest, held, how far ahead its time is, refill, period, room; and how long it has to wait."""
    shortages = []
    for index, used, rest, held, ahead_us, refill, period_us, room in zip(*[iter(reply[1:])] * 8, strict=True):
        asked = units[index]
        if period_us:
            level = used * period_us + rest
            wait = wait_us(level, ahead_us, held=held, units=asked, room=room, refill=refill, period_us=period_us, now_us=0)
        else:
            wait = NEVER if asked > room else 0
        shortages.append(Shortage(index, Standing(used + (rest > 0), held), wait))
    return tuple(shortages)
