"""Following one writer: what is read, what is deleted, and when."""

from __future__ import annotations

from contextlib import closing

from bookings import START_US, WRITER, intent, settlement
from tokenweir.ledger_ports import Checkpoint
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import encode_frame
from tokenweir.workers.journal_tail import WriterTail


def segments(directory, *parts):
    for number, records in enumerate(parts, 1):
        files.segment_path(directory, WRITER, number).write_bytes(b"".join(map(encode_frame, records)))
    return list(range(1, len(parts) + 1))


def test_it_stops_near_its_limit_and_goes_on_where_it_stopped(tmp_path):
    records = [record for n in range(3000) for record in (intent(n), settlement(intent(n)))]
    there = segments(tmp_path, records[:2000], records[2000:])
    with closing(WriterTail(tmp_path, WRITER, booked=None)) as tail:
        batches = []
        while batch := tail.read(there, 100):
            batches.append(batch)
    assert len(batches) > 3
    assert [entry.entry_id for batch in batches for entry in batch] == [intent(n).attempt_id for n in range(3000)]


def test_what_lies_before_the_checkpoint_only_closes_intents(tmp_path):
    first = b"".join(map(encode_frame, (intent(1), intent(2), settlement(intent(1)))))
    there = segments(tmp_path, [intent(1), intent(2), settlement(intent(1)), settlement(intent(2))])
    with closing(WriterTail(tmp_path, WRITER, booked=Checkpoint(WRITER, 1, len(first)))) as tail:
        assert [entry.entry_id for entry in tail.read(there, 10)] == [intent(2).attempt_id]
        assert tail.open_intents == 0
        assert tail.checkpoint.offset > len(first)


def test_a_segment_is_kept_while_an_intent_of_it_or_of_one_before_it_is_open(tmp_path):
    there = segments(tmp_path, [intent(1)], [intent(2), settlement(intent(2))], [intent(3)])
    with closing(WriterTail(tmp_path, WRITER, booked=None)) as tail:
        tail.read(there, 10)
        tail.tidy()
        assert files.writers(tmp_path)[WRITER] == [1, 2, 3]
        there = segments(tmp_path, [intent(1)], [intent(2), settlement(intent(2))], [intent(3), settlement(intent(1))])
        tail.read(there, 10)
        tail.tidy()
        assert files.writers(tmp_path)[WRITER] == [3]


def test_what_a_dead_writer_left_open_is_given_up_once_in_order(tmp_path):
    there = segments(tmp_path, [intent(n) for n in (3, 1, 2)])
    with closing(WriterTail(tmp_path, WRITER, booked=None)) as tail:
        tail.read(there, 10)
        assert not tail.ended
        assert tail.bury()
        tail.read(there, 10)
        assert tail.ended
        assert [entry.attempt_id for entry in tail.give_up(now_us=START_US)] == [intent(n).attempt_id for n in (3, 1, 2)]
        assert list(tail.give_up(now_us=START_US)) == []
        tail.tidy()
        tail.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_settlement_without_an_intent_is_an_orphan_and_no_entry(tmp_path):
    there = segments(tmp_path, [settlement(intent(1))])
    with closing(WriterTail(tmp_path, WRITER, booked=None)) as tail:
        assert tail.read(there, 10) == []
        assert tail.orphans == [intent(1).attempt_id]
