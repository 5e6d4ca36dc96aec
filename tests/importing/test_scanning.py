"""Lines are found whole, in any file however it is cut, in memory that no line can exceed."""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.importing import scanning
from tokenweir.importing.scanning import MarkedLines
from tokenweir.wire.transcripts import MARK

PIECES = st.sampled_from([b"", b"x", b"y" * 9, b"z" * 60, MARK, b'"usag', b'e"', b"\n", b"\n", b"\n"])


def scan(content, *, piece=8, held=100, most=10_000, window=100, cuts=()):
    """All marked lines of all parts, and the reader of the last part."""
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        for name, value in {"PIECE_BYTES": piece, "LINE_BYTES_HELD": held, "LINE_BYTES_MAX": most, "WINDOW_BYTES": window}.items():
            patch.setattr(scanning, name, value)
        file.write(content)
        file.flush()
        bounds = [0, *sorted(cuts), None]
        found = []
        for start, end in pairwise(bounds):
            lines = MarkedLines(file.fileno(), start=start, end=end, at_line_start=start == 0)
            found += [bytes(line) for line in lines]
        return found, lines


@given(st.lists(PIECES, max_size=40).map(b"".join), st.sampled_from([7, 8, 33]), st.sets(st.integers(1, 300), max_size=4))
def test_every_marked_line_is_found_once_however_the_file_is_cut(content, piece, cuts):
    found, _ = scan(content, piece=piece, held=1_000, window=100, cuts=[cut for cut in cuts if cut <= len(content)])
    assert found == [line for line in content.split(b"\n")[:-1] if MARK in line]


@given(st.lists(PIECES, max_size=40).map(b"".join))
def test_an_unfinished_last_line_is_held_back(content):
    _, lines = scan(content, held=1_000)
    last = content.split(b"\n")[-1]
    assert lines.offset == len(content) - len(last)
    assert lines.tail == (last if MARK in last else b"")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300), st.booleans(), st.integers(0, 40), st.booleans()), max_size=6))
def test_a_long_line_is_held_only_if_one_of_its_ends_is_marked_and_never_beyond_the_bound(shapes):
    lines = [b"x" + MARK * first + b"a" * size + MARK * middle + b"b" * rest + MARK * last for first, size, middle, rest, last in shapes]
    found, reader = scan(b"".join(line + b"\n" for line in lines), piece=16, held=64, most=200, window=20)
    near = [line for line in lines if MARK in line[:20] or MARK in line[-20:]]
    assert [line for line in found if len(line) > 80] == [line for line in near if 80 < len(line) <= 200]
    assert [line for line in found if len(line) <= 64] == [line for line in lines if MARK in line and len(line) <= 64]
    assert reader.oversized == sum(len(line) > 200 for line in near)
    assert reader.offset == sum(len(line) + 1 for line in lines)


def test_a_line_of_hundreds_of_megabytes_passes_in_bounded_memory(tmp_path):
    """A sparse file: 700 MB of nothing in one line between two answers."""
    import tracemalloc

    path = tmp_path / "snapshot.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a":' + MARK + b"}\n" + b'{"snapshot":"')
        file.seek(700 * 1024 * 1024, os.SEEK_CUR)
        file.write(b'"}\n' + b'{"b":' + MARK + b"}\n")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tracemalloc.start()
        lines = MarkedLines(descriptor)
        assert [bytes(line) for line in lines] == [b'{"a":"usage"}', b'{"b":"usage"}']
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()
        os.close(descriptor)
    assert lines.oversized == 0
    assert lines.offset == path.stat().st_size
