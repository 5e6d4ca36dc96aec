"""Changing the directory: revisions follow each other without a gap, whoever changes at once, and a failed change has none."""

from __future__ import annotations

import threading

import pytest

from databases import DATABASES
from limit_office import NOW, limit_office
from tokenweir.storage.changes import LATEST, changing, to_json
from tokenweir.storage.engine import reading


@pytest.fixture(params=DATABASES)
def office(request, tmp_path):
    with limit_office(request.param, tmp_path) as made:
        yield made


def latest(office) -> int:
    with reading(office.limits._engine) as connection:
        return connection.execute(LATEST).scalar_one()


def test_changes_at_once_take_one_revision_each_and_are_all_audited(office):
    before, taken = latest(office), []

    def change(number: int) -> None:
        for step in range(5):
            with changing(office.limits._engine, "ana", NOW) as (_, revision, audited):
                taken.append(revision)
                audited("limit.tried", f"{number}", None, {"step": step})

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == list(range(before + 1, before + 21))
    assert latest(office) == before + 20
    assert sorted((subject, after["step"]) for _, subject, _, after in office.audit()) == [(str(n), step) for n in range(4) for step in range(5)]


def test_a_change_that_fails_takes_no_revision_and_leaves_no_record(office):
    before = latest(office)

    def fail() -> None:
        with changing(office.limits._engine, "ana", NOW) as (_, _, audited):
            audited("limit.tried", "x", None, None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (latest(office), office.audit()) == (before, [])


def test_nothing_is_an_empty_text():
    assert to_json(None) == ""
    assert to_json({"a": ("b", 1)}) == '{"a":["b",1]}'
