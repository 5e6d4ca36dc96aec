"""Rows of entries: there and back without a loss."""

from __future__ import annotations

from bookings import entry
from tokenweir.storage.entry_rows import COLUMNS, as_json, entry_of, row_of, storable
from tokenweir.storage.schema import ENTRIES


def test_an_entry_survives_the_way_into_a_row_and_back():
    odd = entry(1, flags=("a", "b"), raw_usage=bytes(range(256)), error_type="ü")
    assert entry_of(row_of(odd)) == odd


def test_every_column_of_the_table_is_written_and_none_else():
    assert sorted(COLUMNS) == sorted(column.name for column in ENTRIES.columns)


def test_no_strings_are_the_text_that_the_index_of_flags_leaves_out():
    assert as_json(()) == "[]"
    assert as_json(["x"]) == '["x"]'


def test_the_character_that_postgresql_does_not_have_is_replaced():
    assert storable(entry(1, model="a\0b")).model == "a\ufffdb"
    plain = entry(1)
    assert storable(plain) is plain
