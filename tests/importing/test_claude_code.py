"""Booking transcripts: the same ledger however often, in whatever pieces and order they are read; and the same sums as the report."""

from __future__ import annotations

import os
import random
import tempfile
from contextlib import closing, suppress
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import misleading_trees
import transcript_oracle
from bookings import StoppedClock, cells_of
from databases import DATABASES, settings_for
from tellings import all_entries, metered, net, stored_cells
from tokenweir import app
from tokenweir.errors import StoreUnavailable
from tokenweir.importing import claude_code
from tokenweir.importing.claude_code import TranscriptImport
from tokenweir.importing.gathering import gather
from tokenweir.importing.places import find_transcripts
from tokenweir.ledger.imported import Account
from tokenweir.ledger.sources import Booked
from tokenweir.metering.spend import Query, label, spend
from tokenweir.reports.answers import Answers
from tokenweir.settings import Settings
from transcript_trees import line, write_tree

ACCOUNT = Account("org_1", "team_1", "person:ada")


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return app.open_rate_card(Settings(data_dir=tmp_path_factory.mktemp("none")))


@pytest.fixture
def store(tmp_path):
    with closing(app.open_ledger(Settings(data_dir=tmp_path / "home"), create=True)) as ledger:
        yield ledger


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "projects"
    folder.mkdir()
    return folder


def read(store, card, *places):
    """One run, as a process of its own would make it."""
    problems: list[str] = []
    return TranscriptImport(store, ACCOUNT, card, clock=StoppedClock()).run(find_transcripts(places, on_problem=problems.append))


def sums(entries):
    usage = [
        sum(getattr(one.usage, name) for one in entries) for name in ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
    ]
    return [*usage, sum(one.cost_nanos for one in entries)]


def reported(card, *places):
    answers, _ = gather(find_transcripts(places, on_problem=print), card, processes=1)
    assert isinstance(answers, Answers)
    found = list(answers)
    return [*(sum(answer.counts[place] for answer in found) for place in range(5)), sum(answer.cost_nanos for answer in found)]


@pytest.mark.parametrize("seed", range(6))
def test_the_ledger_comes_to_the_same_tokens_and_nanos_as_the_report_on_the_same_tree(store, card, tree, seed):
    write_tree(tree, seed=seed)
    read(store, card, tree)
    entries = all_entries(store)
    assert sums(entries) == reported(card, tree)
    assert stored_cells(store) == cells_of(entries)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
)
@given(misleading_trees.trees())
def test_every_day_of_the_ledger_is_that_of_a_slow_reader_written_from_the_rules_alone(card, misleading):
    with tempfile.TemporaryDirectory() as folder, closing(app.open_ledger(Settings(data_dir=Path(folder) / "home"), create=True)) as store:
        root = Path(folder) / "projects"
        for name, content in misleading.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        read(store, card, root)
        expected = transcript_oracle.totals(sorted(root.glob("**/*.jsonl")), misleading_trees.PRICES)
        names = (*transcript_oracle.CLASSES, "cost_nanos")
        booked = {
            label(row.start_us or 0, "day", UTC): {name: getattr(row.sums, name) for name in names} for row in spend(store, Query(grain="day")).rows
        }
        assert booked == expected


@pytest.mark.parametrize("seed", range(4))
def test_files_that_grow_while_they_are_read_again_and_again_come_to_the_same_ledger(store, card, tree, tmp_path, seed):
    write_tree(tree, seed=seed, files=5)
    growing = tmp_path / "growing"
    chance = random.Random(seed)
    contents = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*.jsonl")}
    ends = dict.fromkeys(contents, 0)
    while any(ends[name] < len(contents[name]) for name in contents):
        for name, content in contents.items():
            ends[name] = min(len(content), ends[name] + chance.randrange(len(content) // 3 + 2))
            (growing / name).parent.mkdir(parents=True, exist_ok=True)
            (growing / name).write_bytes(content[: ends[name]])
        read(store, card, growing)
    entries = all_entries(store)
    assert sums(entries) == reported(card, tree)
    assert stored_cells(store) == cells_of(entries)
    with closing(app.open_ledger(Settings(data_dir=tmp_path / "at_once"), create=True)) as other:
        read(other, card, growing)
        assert net(entries) == net(all_entries(other))


def test_an_entry_says_who_where_and_how_sure(store, card, tree):
    (tree / "a.jsonl").write_text(line("msg_1", "req_1", isSidechain=True, agentId="agent-7", speed="fast"))
    read(store, card, tree)
    (entry,) = all_entries(store)
    assert (entry.source, entry.dedup_key, entry.certainty) == ("claude_code_log", "message:msg_1", "partial")
    assert (entry.key_id, entry.session_id, entry.agent_id, entry.tags) == ("person:ada", "session-1", "agent-7", ("project:/home/ada/app",))
    assert entry.client == "claude-code/2.1.300"
    assert set(entry.flags) >= {"estimated", "sidechain"}
    assert b"input_tokens" in entry.raw_usage


def test_an_unchanged_file_is_not_opened_again(store, card, tree, monkeypatch):
    (tree / "a.jsonl").write_text(line())
    assert read(store, card, tree).files_read == 1
    monkeypatch.setattr(claude_code.os, "open", lambda *_: pytest.fail("opened"))
    again = read(store, card, tree)
    assert (again.files, again.files_read, again.booked) == (1, 0, Booked())


def test_only_what_was_added_is_read(store, card, tree):
    path = tree / "a.jsonl"
    path.write_text(line("msg_1", "req_1"))
    read(store, card, tree)
    with path.open("a") as file:
        file.write(line("msg_2", "req_2"))
    assert read(store, card, tree).rows_read == 1
    (progress,) = store.progress_of("claude_code_log")
    assert (progress.byte_offset, progress.rows_read, progress.booked) == (path.stat().st_size, 2, Booked(new=2))


def test_a_last_line_without_its_newline_counts_if_it_is_whole_and_is_looked_at_again(store, card, tree):
    path = tree / "a.jsonl"
    path.write_text(line("msg_1", "req_1", output=5).rstrip("\n"))
    assert read(store, card, tree).booked == Booked(new=1)
    path.write_text(line("msg_1", "req_1", output=5) + line("msg_1", "req_1", output=50))
    assert read(store, card, tree).booked == Booked(grown=1)
    path.write_text(path.read_text() + line("msg_2", "req_2")[:60])
    assert read(store, card, tree).rows_read == 0


def test_a_file_that_was_replaced_or_cut_is_read_anew_and_books_nothing_twice(store, card, tree):
    path = tree / "a.jsonl"
    path.write_text(line("msg_1", "req_1") + line("msg_2", "req_2"))
    read(store, card, tree)
    path.write_text(line("msg_1", "req_1"))
    assert read(store, card, tree).booked == Booked(matched=1)
    replacement = tree / "new"
    replacement.write_text(line("msg_1", "req_1") + line("msg_3", "req_3") + line("msg_2", "req_2"))
    replacement.rename(path)
    assert read(store, card, tree).booked == Booked(new=1, matched=2)


def test_a_file_that_cannot_be_read_is_said_and_holds_up_no_other(store, card, tree, monkeypatch):
    for name in "ab":
        (tree / f"{name}.jsonl").write_text(line(f"msg_{name}", f"req_{name}"))
    open_file = os.open

    def refuse(path, *more, **named):
        if str(path).endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied")
        return open_file(path, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr(claude_code.os, "open", refuse)
        done = read(store, card, tree)
    assert done.booked == Booked(new=1)
    assert "a.jsonl: Permission denied" in done.problems[0]
    assert [progress.problem != "" for progress in store.progress_of("claude_code_log")] == [True, False]
    assert read(store, card, tree).booked == Booked(new=1)
    assert all(not progress.problem for progress in store.progress_of("claude_code_log"))


def test_a_line_too_long_to_hold_is_counted_and_the_rest_is_booked(store, card, tree, monkeypatch):
    monkeypatch.setattr("tokenweir.importing.scanning.LINE_BYTES_MAX", 4_500_000)
    long = '{"type": "assistant", "message": {"usage": {}, "content": "' + "x" * 5_000_000 + '"}}\n'
    (tree / "a.jsonl").write_text(line("msg_1", "req_1") + long + line("msg_2", "req_2"))
    done = read(store, card, tree)
    assert (done.booked, done.rows_refused) == (Booked(new=2), 1)


def test_what_the_gateway_metered_is_not_booked_again(store, card, tree):
    store.book([metered(1, message="msg_1", upstream="up_1"), metered(2, request="req_2")])
    (tree / "a.jsonl").write_text("".join(line(f"msg_{n}", f"req_{n}") for n in (1, 2, 3)))
    assert read(store, card, tree).booked == Booked(new=1, matched=2)


@pytest.mark.parametrize("kind", DATABASES)
def test_a_store_that_fails_at_any_batch_leaves_a_ledger_that_the_next_run_completes(tmp_path, card, tree, monkeypatch, kind):
    monkeypatch.setattr(claude_code, "BATCH_ROWS", 7)
    write_tree(tree, seed=3, files=4)
    with settings_for(kind, tmp_path / "home") as chosen, closing(app.open_ledger(chosen, create=True)) as store:
        book = store.book_told

        class Failing:
            left = 0

            def book_told(self, *arguments, **named):
                self.left -= 1
                if self.left < 0:
                    raise StoreUnavailable
                return book(*arguments, **named)

            def __getattr__(self, name):
                return getattr(store, name)

        failing = Failing()
        for allowed in range(12):
            failing.left = allowed
            with suppress(StoreUnavailable):
                read(failing, card, tree)
        assert read(store, card, tree).files_read <= 4
        entries = all_entries(store)
        assert sums(entries) == reported(card, tree)
        assert stored_cells(store) == cells_of(entries)
