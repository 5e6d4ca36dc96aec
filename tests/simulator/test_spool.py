"""Records come back as they went in, whether they are still in memory or on disk."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenweir.simulator import spool as spool_module
from tokenweir.simulator.spool import Spool


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 90), st.data())
def test_records_and_ranges_are_read_back(records, buffer_bytes, data):
    """Ranges may begin in the file and end in memory."""
    usual, spool_module._BUFFER_BYTES = spool_module._BUFFER_BYTES, buffer_bytes
    try:
        spool = Spool()
        for record in records:
            spool.append(record)
    finally:
        spool_module._BUFFER_BYTES = usual
    whole = b"".join(records)
    start, size = data.draw(st.integers(0, len(whole) + 3)), data.draw(st.integers(0, 200))
    assert [spool.record(index) for index in range(len(spool))] == records
    assert spool.read(start, size) == whole[start : start + size]
    assert spool.size == len(whole)


def test_a_long_spool_holds_little_in_memory():
    """What is beyond the buffer is in a file."""
    spool = Spool()
    for _ in range(100):
        spool.append(b"x" * 10_000)
    assert spool.size == 1_000_000
    assert len(spool._buffer) < spool_module._BUFFER_BYTES
