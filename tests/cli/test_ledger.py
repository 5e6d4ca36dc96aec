"""`tokenweir ledger …` on a real ledger: what it writes, what it finds, what it corrects."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from bookings import START_US, entry, intent
from tokenweir import app as wiring
from tokenweir.cli.ledger import EXPORT_FIELDS
from tokenweir.cli.root import app
from tokenweir.ledger.entries import FLAG_UNPRICED, unknown_entry
from tokenweir.pricing.rating import cost_nanos
from tokenweir.settings import Settings
from tokenweir.storage import engine as database
from tokenweir.usage import Certainty
from tokenweir.wire.messages import read_usage

RAW = b'{"input_tokens":1000,"output_tokens":50}'
MODEL = "claude-sonnet-4-5"
WIDE = "\uff1d\uff0b\uff0d\uff20"
"""The full-width forms of = + - @."""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def book(home):
    def into(*entries):
        with closing(wiring.open_ledger(Settings(data_dir=home), create=True)) as store:
            store.book(entries)

    return into


def run(home, *arguments, code=0):
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(home)])
    assert result.exit_code == code, result.output
    return result


def export(home, *more):
    return [json.loads(line) for line in run(home, "ledger", "export", *more).stdout.splitlines()]


def test_the_export_has_every_field_and_null_for_what_is_not_known(home, book):
    book(entry(1, model=MODEL), unknown_entry(intent(2), now_us=START_US + 10**9))
    known, unknown = export(home)
    assert tuple(known) == tuple(unknown) == EXPORT_FIELDS
    assert (known["status"], known["stream"], known["tags"], known["cost_nanos"]) == (200, True, ["a", 'quote"d'], 12_345)
    assert known["started_at"] == "2026-11-22T12:00:00.001000Z"
    for name in ("status", "ended_at", "upstream_request_id", "service_tier", "speed", "stop_reason", "error_type", "first_byte_us", "key_name"):
        assert unknown[name] is None, name
    assert unknown["flags"] == ["unknown"]
    assert unknown["certainty"] == "ceiling"


def test_a_range_is_by_when_attempts_began(home, book):
    book(*[entry(n, at_us=START_US + n * 3_600_000_000) for n in range(5)])
    assert len(export(home, "--since", "2026-11-22T13:00:00Z", "--until", "2026-11-22T15:00:00Z")) == 2


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(home, book):
    starts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", *[f"{wide}1" for wide in WIDE], " =1", '=HYPERLINK("http://x";"y")']
    book(*[entry(n, begun={"session_id": start, "client": start}, cost_nanos=-n) for n, start in enumerate(starts)])
    rows = list(csv.DictReader(io.StringIO(run(home, "ledger", "export", "--format", "csv").stdout, newline="")))
    assert tuple(rows[0]) == EXPORT_FIELDS
    for n, (row, start) in enumerate(zip(rows, starts, strict=True)):
        assert row["session_id"] == f"'{start}"
        assert int(row["cost_nanos"]) == -n
        text_cells = [value for name, value in row.items() if name != "cost_nanos"]
        assert not any(value.lstrip(" ").startswith(tuple(f"=+-@\t\r{WIDE}")) for value in text_cells)


def test_an_empty_csv_has_its_head_and_a_file_is_private_and_whole(home, book, tmp_path):
    book()
    out = tmp_path / "out.csv"
    run(home, "ledger", "export", "--format", "csv", "--out", str(out))
    assert out.read_text().count("\n") == 1
    assert out.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["out.csv"]
    run(home, "ledger", "export", "--out", str(tmp_path / "no" / "where"), code=2)


def test_every_command_says_that_there_is_no_ledger_yet(home):
    for arguments in (
        ["ledger", "export"],
        ["ledger", "verify"],
        ["ledger", "rerate"],
        ["ledger", "adjust", "x", "--void", "--reason", "r"],
        ["usage"],
    ):
        result = run(home, *arguments, code=2)
        assert "no database yet" in result.stderr
        assert "Traceback" not in result.stderr
    assert not home.exists()


def test_verify_is_content_with_a_sound_ledger_and_names_what_was_planted(home, book):
    book(*[entry(n) for n in range(10)])
    assert json.loads(run(home, "ledger", "verify", "--json").stdout)["ok"] is True
    engine = wiring.open_engine(Settings(data_dir=home))
    for statement in (
        "UPDATE rollup_day SET cost_nanos = cost_nanos + 1 WHERE dims_id = (SELECT min(dims_id) FROM rollup_day)",
        "DELETE FROM rollup_15m WHERE dims_id = (SELECT min(dims_id) FROM rollup_15m)",
        "UPDATE entries SET output = output + 1 WHERE entry_id = (SELECT min(entry_id) FROM entries)",
        "DELETE FROM entries WHERE entry_id = (SELECT max(entry_id) FROM entries)",
        "UPDATE dims SET model = 'cheaper' WHERE dims_id = (SELECT max(dims_id) FROM dims)",
        "UPDATE entries SET kind = 'adjustment', reason = 'x', entry_id = attempt_id WHERE entry_id = (SELECT min(entry_id) FROM entries)",
    ):
        with engine.connect() as connection:
            connection.execute(text(statement))
            connection.commit()
            result = run(home, "ledger", "verify", code=1)
            assert "differences in" in result.stdout
    engine.dispose()


def test_verify_rates_again_what_the_same_card_rated(home, book):
    card = wiring.open_rate_card(Settings(data_dir=home))
    metered = read_usage(RAW, model=MODEL)
    nanos, _ = cost_nanos(card, metered, at_us=START_US)
    fields = {"model": MODEL, "usage": metered.usage, "raw_usage": RAW}
    book(entry(1, begun={"card_version": card.version}, cost_nanos=nanos, **fields))
    run(home, "ledger", "verify")
    book(entry(2, begun={"card_version": card.version}, cost_nanos=nanos - 1, **fields))
    findings = json.loads(run(home, "ledger", "verify", "--json", code=1).stdout)["findings"]
    assert [finding["kind"] for finding in findings] == ["cost"]


def test_what_had_no_price_is_rated_once_and_moves_out_of_unpriced(home, book):
    usage = read_usage(RAW, model=MODEL).usage
    book(
        entry(1, model=MODEL, usage=usage, raw_usage=RAW, cost_nanos=10**9, flags=(FLAG_UNPRICED,)),
        entry(2, model="still-unknown", flags=(FLAG_UNPRICED,)),
    )
    dry = json.loads(run(home, "ledger", "rerate", "--dry-run", "--json").stdout)
    assert dry["dry_run"]
    assert len(export(home)) == 2
    done = json.loads(run(home, "ledger", "rerate", "--json").stdout)
    assert [(change["before_nanos"], change["after_nanos"]) for change in done["changed"]] == [(10**9, 3_750_000)]
    assert (done["looked_at"], done["changed"]) == (2, dry["changed"])
    assert sum(line["cost_nanos"] for line in export(home) if line["attempt_id"] == intent(1).attempt_id) == 3_750_000
    assert json.loads(run(home, "ledger", "rerate", "--json").stdout)["changed"] == []
    run(home, "ledger", "verify")
    engine = wiring.open_engine(Settings(data_dir=home))
    with database.reading(engine) as connection:
        moved = connection.execute(text("SELECT sum(requests), sum(cost_nanos) FROM rollup_day JOIN dims USING (dims_id) WHERE unpriced = 1")).one()
    assert tuple(moved) == (1, 12_345)
    engine.dispose()


def test_an_operator_states_the_truth_of_an_unknown_attempt(home, book):
    begun = intent(1, model_requested=MODEL)
    book(unknown_entry(begun, now_us=START_US + 10**9), entry(2, certainty=Certainty.EXACT))
    adjust = ["ledger", "adjust", begun.attempt_id, "--reason", "provider's log", "--json"]
    done = json.loads(run(home, *adjust, "--usage", RAW.decode()).stdout)
    assert [(change["before_nanos"], change["after_nanos"]) for change in done["changed"]] == [(begun.ceiling_nanos, 3_750_000)]
    assert json.loads(run(home, *adjust, "--usage", RAW.decode()).stdout)["changed"] == []
    lines = [line for line in export(home) if line["attempt_id"] == begun.attempt_id]
    assert {line["reason"] for line in lines} == {None, "operator: provider's log"}
    assert sum(line["output"] for line in lines) == 50
    run(home, *adjust, "--void")
    assert sum(line["cost_nanos"] for line in export(home) if line["attempt_id"] == begun.attempt_id) == 0
    run(home, "ledger", "verify")
    certainties = json.loads(run(home, "usage", "--by", "certainty", "--json").stdout)["rows"]
    assert [(row["certainty"], row["requests"]) for row in certainties] == [("exact", 1), ("none", 1)]


def test_wrong_adjustments_are_refused_with_one_sentence(home, book):
    book(entry(1))
    exact = intent(1).attempt_id
    for arguments, said in (
        ([exact, "--void", "--reason", "r"], "--force"),
        (["f" * 32, "--void", "--reason", "r"], "no attempt"),
        ([exact, "--reason", "r"], "either --usage JSON or --void"),
        ([exact, "--void", "--usage", "{}", "--reason", "r"], "either --usage JSON or --void"),
        ([exact, "--usage", "[]", "--reason", "r", "--force"], "not a JSON object"),
        ([exact, "--void", "--reason", " "], "--reason"),
    ):
        assert said in run(home, "ledger", "adjust", *arguments, code=2).stderr
