"""How far other sources have been read, and the provider's reports: stored as they came, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.ledger.sources import Booked
from tokenweir.ledger_ports import ImportProgress, ProviderReport
from tokenweir.storage.ledger import SqlLedger

PROGRESS = ImportProgress("claude_code_log", "/home/ada/a.jsonl", 7, 100, 5, 90, 3, 3, 1, 0, Booked(1, 2, 3, 4), 10, 20, "")


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    with settings_for(request.param, tmp_path) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        yield ledger


def test_progress_comes_back_as_it_was_stored_and_the_last_one_stands(store):
    store.book_told([], now_us=1, progress=ImportProgress("claude_code_log", "/home/ada/a.jsonl", problem="cannot be read"))
    store.book_told([], now_us=1, progress=PROGRESS)
    assert store.progress_of("claude_code_log") == [PROGRESS]
    assert store.progress_of("claude_code_log", ["/home/ada/a.jsonl", "/else"]) == [PROGRESS]
    assert store.progress_of("claude_code_log", ["/else"]) == []
    assert store.progress_of("litellm") == []
    assert store.progress_of("") == [PROGRESS]


def test_a_page_of_a_report_is_kept_once_as_it_was_received_and_never_booked(store):
    pages = [ProviderReport(f"{n:032x}", kind, n * 10, n * 10 + 10, 3, 99, "file.json", b'{"data": []}') for n, kind in ((2, "usage"), (1, "cost"))]
    assert store.keep_reports(pages) == 2
    assert store.keep_reports([*pages, ProviderReport("f" * 32, "usage", 5, 6, 0, 99, "", b"\x00\xff")]) == 1
    assert [page.report_id for page in store.reports()] == ["f" * 32, pages[1].report_id, pages[0].report_id]
    assert store.reports("cost") == [pages[1]]
    assert store.page() == []
    assert store.extent() is None
