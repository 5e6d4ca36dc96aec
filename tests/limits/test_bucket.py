"""What a bucket and the answers about it are: plain frozen values that keep what they were given."""

from __future__ import annotations

import msgspec
import pytest

from tokenweir.limits.bucket import NEVER, Bucket, Hold, Kind, Refused, Reserved, Seed, Shortage, Standing, Unseeded


def test_a_bucket_refuses_and_holds_unless_it_says_otherwise():
    """The defaults are the careful ones: enforced, held until settled, not known to be empty."""
    bucket = Bucket("lim_1|", Kind.COUNTER, 10)
    assert bucket.enforced
    assert not bucket.taken
    assert not bucket.ends_streams
    assert not bucket.fresh


@pytest.mark.parametrize(
    "value", [Bucket("a", Kind.LEVEL, 1), Standing(1, 2), Shortage(0, Standing(), NEVER), Reserved(()), Refused(()), Unseeded((1,))]
)
def test_answers_cannot_be_changed(value):
    """What was decided stays as it was told."""
    with pytest.raises(AttributeError):
        setattr(value, value.__struct_fields__[0], 1)


def test_a_wait_that_never_ends_is_no_time():
    """NEVER cannot be mistaken for a wait."""
    assert NEVER < 0


@pytest.mark.parametrize(
    "value",
    [
        Seed(Bucket("a|k|1", Kind.COUNTER, 10, fresh=True, ends_us=5), 3, 4, ("adj_1",)),
        Hold("req_1", "writer-1", (("a|k|1", 5), ("b|", 0))),
        Bucket("b|", Kind.LEVEL, 10, refill=10, period_us=60_000_000, taken=True, enforced=False, ends_streams=True),
    ],
)
def test_values_survive_being_sent(value):
    """Values that go to another process come back as they were, kinds as kinds."""
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))
    assert again == value
    if isinstance(again, Bucket):
        assert again.kind is value.kind
