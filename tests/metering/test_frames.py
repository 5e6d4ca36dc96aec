"""Frames: whatever is cut off or damaged, what was whole is read, and what is not is named."""

from __future__ import annotations

import pytest

from bookings import intent, settlement
from tokenweir.metering.frames import FRAME_BYTES_MAX, Tail, encode_frame, next_frame, scan

RECORDS = [record for n in range(4) for begun in [intent(n)] for record in (begun, settlement(begun))]
FRAMES = [encode_frame(record) for record in RECORDS]
WHOLE = b"".join(FRAMES)


def test_what_was_written_is_read_back():
    found = scan(WHOLE)
    assert [record for _, record in found.records] == RECORDS
    assert (found.length, found.tail) == (len(WHOLE), Tail.CLEAN)


def test_every_prefix_gives_the_whole_frames_in_it_and_is_clean_only_between_frames():
    ends = [sum(map(len, FRAMES[: n + 1])) for n in range(len(FRAMES))]
    for cut in range(len(WHOLE) + 1):
        found = scan(WHOLE[:cut])
        whole = [end for end in ends if end <= cut]
        assert [end for end, _ in found.records] == whole
        assert found.tail is (Tail.CLEAN if cut in (0, *ends) else Tail.TORN)


def test_zeros_behind_the_last_frame_are_the_end_for_now():
    assert scan(WHOLE + bytes(4096)).tail is Tail.CLEAN
    assert scan(bytes(100)).tail is Tail.CLEAN


def test_any_flipped_bit_before_the_last_frame_stops_the_reading_at_its_frame_and_never_yields_another_record():
    ends = [0, *(sum(map(len, FRAMES[: n + 1])) for n in range(len(FRAMES)))]
    for at in range(0, ends[-2], 7):
        damaged = bytearray(WHOLE)
        damaged[at] ^= 1 << (at % 8)
        found = scan(bytes(damaged))
        first = max(end for end in ends if end <= at)
        assert found.length == first
        assert [record for _, record in found.records] == RECORDS[: len(found.records)]
        assert found.tail is not Tail.CLEAN


def test_a_zeroed_page_in_the_middle_is_damage_and_not_an_end():
    damaged = WHOLE[: len(FRAMES[0])] + bytes(len(FRAMES[1])) + WHOLE[len(FRAMES[0]) + len(FRAMES[1]) :]
    found = scan(damaged)
    assert found.tail is Tail.CORRUPT
    assert next_frame(damaged, found.length + 1) == len(FRAMES[0]) + len(FRAMES[1])


def test_the_frame_behind_damage_is_found_and_none_where_there_is_none():
    assert next_frame(b"\x07" * 50 + FRAMES[0], 1) == 50
    assert next_frame(b"\x07" * 50 + FRAMES[0][:-1], 1) is None


def test_a_record_that_no_reader_would_take_is_not_written():
    with pytest.raises(ValueError, match="too large"):
        encode_frame(intent(1, client="x" * FRAME_BYTES_MAX))
