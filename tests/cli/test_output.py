"""Tables fit the terminal: where one does not, each value gets a line of its own and nothing is cut."""

from __future__ import annotations

from tokenweir.cli.output import print_table

COLUMNS = ("team", "requests", "input", "cache read", "output", "cost")
ROWS = [("research", "12", "1,234,567", "9,876,543", "12,345", "$1.23"), ("support [bold]", "7", "1", "2", "3", "$0.01")]


def test_a_wide_terminal_gets_a_table(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    print_table(COLUMNS, ROWS, right=COLUMNS[1:])
    out = capsys.readouterr().out
    assert any(line.split() == ["research", "12", "1,234,567", "9,876,543", "12,345", "$1.23"] for line in out.splitlines())


def test_a_narrow_terminal_loses_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_table(COLUMNS, ROWS, right=COLUMNS[1:], title="Usage")
    out = capsys.readouterr().out
    assert all(len(line) <= 40 for line in out.splitlines())
    for row in ROWS:
        for column, cell in zip(COLUMNS, row, strict=True):
            assert f"{column:<10}  {cell}" in out


def test_what_stands_in_a_cell_is_never_markup(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    print_table(COLUMNS, ROWS)
    assert "support [bold]" in capsys.readouterr().out


def test_an_empty_table_shows_its_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    print_table(COLUMNS, [])
    assert "requests" in capsys.readouterr().out
