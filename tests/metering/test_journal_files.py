"""The files of the journal: their order, and who lives."""

from __future__ import annotations

import os

from bookings import WRITER
from tokenweir.metering import journal_files as files


def test_writers_and_segments_are_listed_in_the_order_they_began(tmp_path):
    for name in (f"{'b' * 32}-00000002.seg", f"{'b' * 32}-00000010.seg", f"{'a' * 32}.lock", "notes.txt", f"{'c' * 32}.lock.new", "x-1.seg"):
        (tmp_path / name).touch()
    assert list(files.writers(tmp_path).items()) == [("a" * 32, []), ("b" * 32, [2, 10])]


def test_a_lock_can_be_taken_only_while_nobody_holds_it(tmp_path):
    path = files.lock_path(tmp_path, WRITER)
    held = files.take_lock(path)
    assert files.take_lock(path) is None
    os.close(held)
    again = files.take_lock(path)
    assert again is not None
    os.close(again)


def test_the_size_of_the_journal_is_that_of_its_segments(tmp_path):
    files.segment_path(tmp_path, WRITER, 1).write_bytes(b"x" * 10)
    files.segment_path(tmp_path, WRITER, 2).write_bytes(b"x" * 5)
    files.reserve_path(tmp_path, WRITER).write_bytes(b"x" * 100)
    assert files.journal_bytes(tmp_path) == 15
