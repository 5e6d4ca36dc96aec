"""The reader of Protocol Buffers: what was written is read, and whatever the bytes are it ends with a value or one sentence."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.wire.protobuf import Field, field, read_message, varint

TABLE = {
    "Outer": {1: Field("inner", "message", "Inner", repeated=True), 2: Field("name", "text"), 3: Field("count", "int64"), 4: Field("raw", "bytes")},
    "Inner": {1: Field("flag", "bool"), 2: Field("half", "double"), 3: Field("big", "fixed64"), 4: Field("small", "uint64")},
}


@given(st.text(), st.integers(-(2**63), 2**63 - 1), st.lists(st.tuples(st.booleans(), st.integers(0, 2**64 - 1))))
def test_what_was_written_is_read(name, count, inners):
    written = field(2, name.encode()) + field(3, count) + b"".join(field(1, field(1, int(flag)) + field(4, small)) for flag, small in inners)
    expected = {"name": name, "count": count}
    if inners:
        expected["inner"] = [{"flag": flag, "small": small} for flag, small in inners]
    assert read_message(written, "Outer", TABLE) == expected


@given(st.integers(0, 2**64 - 1))
def test_a_number_takes_as_many_bytes_as_it_needs(number):
    assert len(varint(number)) == max(1, -(-number.bit_length() // 7))


def test_fields_that_nobody_asked_for_are_stepped_over():
    written = field(99, b"unknown") + field(98, 7) + varint(97 << 3 | 1) + bytes(8) + varint(96 << 3 | 5) + bytes(4) + field(2, b"here")
    assert read_message(written, "Outer", TABLE) == {"name": "here"}


def test_a_known_field_of_another_wire_type_is_stepped_over():
    assert read_message(field(2, 7) + field(3, b"not a number"), "Outer", TABLE) == {}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x12\x05abc", "longer than what is left"),
        (b"\x12", "does not end"),
        (b"\xff" * 11, "does not end"),
        (b"\x0b", "groups"),
        (b"\x00", "out of range"),
        (b"\x12\x02\xff\xfe", "not UTF-8"),
        (b"\x0a\x02\x11\x00", "ends in the middle"),
        (b"\x9a\x06\x05", "longer than what is left"),
    ],
)
def test_bytes_that_are_no_message_are_refused_with_a_sentence(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_message(content, "Outer", TABLE)


@given(st.binary(max_size=400))
def test_any_bytes_end_in_a_value_or_a_sentence(content):
    with suppress(ValueError):
        assert set(read_message(content, "Outer", TABLE)) <= {"inner", "name", "count", "raw"}


def test_a_message_in_itself_goes_no_deeper_than_the_table():
    nested = b""
    for _ in range(5_000):
        nested = field(1, nested)
    assert read_message(nested, "Outer", TABLE) == {"inner": [{}]}
