"""Booking exports: every row is booked, skipped or refused with its line; a file read again books nothing twice."""

from __future__ import annotations

import csv
import gzip
import json
from contextlib import closing

import pytest

from bookings import StoppedClock, cells_of
from tellings import all_entries, metered, stored_cells
from tokenweir import app
from tokenweir.errors import StoreUnavailable
from tokenweir.importing import exports
from tokenweir.importing.exports import book_export, read_export
from tokenweir.imports import litellm
from tokenweir.ledger.imported import Account
from tokenweir.ledger.sources import Booked
from tokenweir.settings import Settings

ACCOUNT = Account("org_1", "team_1", "person:ada")


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return app.open_rate_card(Settings(data_dir=tmp_path_factory.mktemp("none")))


@pytest.fixture
def store(tmp_path):
    with closing(app.open_ledger(Settings(data_dir=tmp_path / "home"), create=True)) as ledger:
        yield ledger


def row(number: int, **fields) -> dict:
    return {
        "request_id": f"msg_{number}",
        "prompt_tokens": 100 + number,
        "completion_tokens": 10,
        "total_tokens": 110 + number,
        "startTime": "2026-11-20 10:00:00",
        "model": "claude-opus-4-5",
        "metadata": {"usage_object": {"cache_read_input_tokens": 50, "cache_creation_input_tokens": 0}},
    } | fields


ROWS = [row(1), row(2, model="gpt-4o"), row(3, prompt_tokens=-1), row(4)]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: json.dumps(value) if isinstance(value, dict) else value for name, value in one.items()} for one in rows)


def write(folder, form):
    path = folder / f"export.{form}"
    lines = "".join(json.dumps(one) + "\n" for one in ROWS)
    if form == "csv":
        write_csv(path, ROWS)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text({"jsonl": "\ufeff" + lines, "json": json.dumps(ROWS, indent=1), "txt": " [" + lines.replace("\n", ",")[:-1] + "]"}[form])
    return path


def book(path, store, card):
    return book_export(path, "litellm", litellm.read, store, ACCOUNT, card, clock=StoppedClock())


@pytest.mark.parametrize("form", ["csv", "jsonl", "jsonl.gz", "json", "txt"])
def test_every_form_of_a_file_comes_to_the_same(store, card, tmp_path, form):
    path = write(tmp_path, form)
    done = book(path, store, card)
    assert (done.rows_read, done.rows_skipped, done.rows_refused, done.booked) == (4, 1, 1, Booked(new=2))
    assert done.problems == (f"{path}:{4 if form == 'csv' else 3}: prompt_tokens is no count: '-1'",)
    assert {one.usage.uncached_input for one in all_entries(store)} == {51, 54}


def test_reading_a_file_again_books_nothing_twice_and_counts_anew(store, card, tmp_path):
    path = write(tmp_path, "jsonl")
    book(path, store, card)
    done = book(path, store, card)
    assert done.booked == Booked(matched=2)
    (progress,) = store.progress_of("litellm")
    assert (progress.rows_read, progress.rows_refused, progress.booked) == (4, 1, Booked(matched=2))
    assert progress.problem.endswith("'-1'")


def test_what_the_gateway_metered_is_not_booked_again(store, card, tmp_path):
    store.book([metered(1, message="msg_1")])
    assert book(write(tmp_path, "jsonl"), store, card).booked == Booked(new=1, matched=1)
    entries = all_entries(store)
    assert stored_cells(store) == cells_of(entries)


def test_an_export_that_was_cut_short_by_a_failing_store_is_completed_by_the_next_run(store, card, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "BATCH_ROWS", 5)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(50)))

    class Failing:
        left = 4

        def book_told(self, *arguments, **named):
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailable
            return store.book_told(*arguments, **named)

        def __getattr__(self, name):
            return getattr(store, name)

    with pytest.raises(StoreUnavailable):
        book(path, Failing(), card)
    assert len(all_entries(store)) == 20
    assert book(path, store, card).booked == Booked(new=30, matched=20)


def test_rows_that_are_no_rows_are_refused_with_their_line(card, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row(1)) + "\n\n[1]\n{\n")
    assert [(taken.line_no, taken.problem) for taken in read_export(path, litellm.read, ACCOUNT, card)] == [
        (1, ""),
        (3, "is no object"),
        (4, "is not JSON"),
    ]
    path = tmp_path / "a.csv"
    path.write_text("request_id,model\nmsg_1\nmsg_2,gpt-4o,more\nmsg_3,gpt-4o\n")
    assert [(taken.line_no, taken.problem) for taken in read_export(path, litellm.read, ACCOUNT, card)] == [
        (2, "has fewer cells than the head of the file"),
        (3, "has more cells than the head of the file"),
        (4, ""),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b"{"), ("a.jsonl", b'\xff\xfe"'), ("a.csv", b'a,b\n"x'), ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:20])],
)
def test_a_file_that_is_none_is_refused_with_a_sentence(card, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"not JSON|not text|not CSV|damaged"):
        list(read_export(tmp_path / name, litellm.read, ACCOUNT, card))


def test_a_file_that_is_not_there_is_named(card, tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        list(read_export(tmp_path / "none.csv", litellm.read, ACCOUNT, card))


def test_a_cell_with_a_whole_answer_in_it_is_read(card, tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, [row(1, messages="x" * 300_000)])
    assert [taken.problem for taken in read_export(path, litellm.read, ACCOUNT, card)] == [""]
