"""What is packed for the scripts, read back. That the scripts read the same is proven by all tests of the store."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.limits.bucket import NEVER, Bucket, Hold, Kind, Shortage, Standing
from tokenweir.storage.limit_packing import SAFE, pack_buckets, pack_units, unpack_hold, unpack_shortages

WHOLES = st.integers(-SAFE, SAFE)


@given(st.text(max_size=40), st.lists(st.tuples(st.text(max_size=60), st.sampled_from(Kind), WHOLES, st.booleans(), WHOLES), max_size=8))
def test_a_hold_comes_back_as_it_was(owner, taken_of):
    """Owner, bucket ids of any letters, and units, of which what was taken at once is not held."""
    buckets = [Bucket(name, kind, room, taken=taken) for name, kind, room, taken, _ in taken_of]
    packed = struct.pack("<H", len(owner.encode())) + owner.encode() + pack_buckets(buckets) + pack_units(units for *_, units in taken_of)
    assert unpack_hold("h1", packed) == Hold("h1", owner, tuple((name, 0 if taken else units) for name, _, _, taken, units in taken_of))


def test_a_room_beyond_what_scripts_can_count_is_the_most_they_can():
    """More grants than that change nothing: no use ever comes so far."""
    assert pack_buckets([Bucket("b", Kind.COUNTER, 2**60)]) == pack_buckets([Bucket("b", Kind.COUNTER, SAFE)])
    assert pack_buckets([Bucket("b", Kind.COUNTER, -(2**60))]) == pack_buckets([Bucket("b", Kind.COUNTER, -SAFE)])


@pytest.mark.parametrize(
    ("numbers", "asked", "shortage"),
    [
        # A counter: index, used, rest, held, how far ahead its time is, refill, period, room.
        ([1, 7, 0, 2, 0, 0, 0, 10], 2, Shortage(1, Standing(7, 2), 0)),
        ([1, 0, 0, 0, 0, 0, 0, 10], 11, Shortage(1, Standing(0, 0), NEVER)),
        # A level of 10 in 100 microseconds: nine and a tenth are used, for two more it has to lose one and a tenth.
        ([1, 9, 10, 0, 0, 10, 100, 10], 2, Shortage(1, Standing(10, 0), 11)),
        ([1, 9, 10, 0, 5, 10, 100, 10], 2, Shortage(1, Standing(10, 0), 16)),
        ([1, 9, 10, 9, 0, 10, 100, 10], 2, Shortage(1, Standing(10, 9), 0)),
        ([1, 9, 10, 0, 0, 10, 100, 10], 11, Shortage(1, Standing(10, 0), NEVER)),
    ],
)
def test_what_is_short(numbers, asked, shortage):
    """How long a level has to wait is worked out here, in whole numbers of any size."""
    assert unpack_shortages([1, *numbers], [0, asked]) == (shortage,)
