"""The demo's screen: usage by team, from the ledger, once a second. In a pipe it prints a line now and then instead."""

from __future__ import annotations

import sys
from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tokenweir.cli.output import note
from tokenweir.ledger.rollups import ZERO, Sums
from tokenweir.metering.spend import Query, spend
from tokenweir.money import format_usd
from tokenweir.ports import LedgerStore
from tokenweir.settings import Settings

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 24
_LINES_EVERY = 5


class Screen:
    """Reads the ledger and draws it."""

    def __init__(self, settings: Settings, *, gateway: str, simulator: str, quiet: bool) -> None:
        from tokenweir import app

        self._ledger = app.open_ledger(settings)
        self._heads = (
            Text.assemble(("Tokenweir", "bold"), f"  gateway {gateway}  before a simulated Claude API at {simulator}"),
            Text("Four teams of simulated programs; every figure is read from the ledger. Ctrl-C ends the demo.", style="dim"),
        )
        self._rates: dict[str, deque[int]] = {}
        self._before: dict[str, int] = {}
        self._drawn = 0
        self._live: Live | None = None
        if not quiet and sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        elif not quiet:
            note(self._heads[0].plain)
        self._quiet = quiet

    def refresh(self) -> None:
        """Read and draw once."""
        teams = _by_team(self._ledger)
        for team, sums in teams.items():
            rate = self._rates.setdefault(team, deque([0] * _HISTORY, maxlen=_HISTORY))
            rate.append(sums.requests - self._before.get(team, 0))
            self._before[team] = sums.requests
        if self._live is not None:
            self._live.update(Group(*self._heads, Text(), _table(teams, self._rates)), refresh=True)
        elif not self._quiet and teams and self._drawn % _LINES_EVERY == 0:
            note("  ".join(f"{team} {sums.requests:,} req {format_usd(sums.cost_nanos)}" for team, sums in teams.items()))
        self._drawn += 1

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.stop()


def _table(teams: dict[str, Sums], rates: dict[str, deque[int]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True, header_style="bold", footer_style="bold")
    totals = sum(teams.values(), start=ZERO)
    columns = {
        "team": "total",
        "requests": f"{totals.requests:,}",
        "refused": f"{totals.errors:,}",
        "prompt": f"{_prompt(totals):,}",
        "from cache": _share(totals),
        "output": f"{totals.output:,}",
        "cost": format_usd(totals.cost_nanos),
        "requests per second": "",
    }
    for name, footer in columns.items():
        table.add_column(name, footer=footer, justify="left" if name in {"team", "requests per second"} else "right", no_wrap=True)
    for team, sums in sorted(teams.items()):
        table.add_row(
            team,
            f"{sums.requests:,}",
            f"{sums.errors:,}",
            f"{_prompt(sums):,}",
            _share(sums),
            f"{sums.output:,}",
            format_usd(sums.cost_nanos),
            Text(_sparkline(rates.get(team, deque())), style="cyan"),
        )
    return table


def _prompt(sums: Sums) -> int:
    return sums.uncached_input + sums.cache_write_5m + sums.cache_write_1h + sums.cache_read


def _share(sums: Sums) -> str:
    prompt = _prompt(sums)
    return f"{100 * sums.cache_read // prompt} %" if prompt else "-"


def _sparkline(rates: deque[int]) -> str:
    highest = max(rates, default=0)
    return "".join(_BARS[(8 * rate + highest - 1) // highest] if highest else " " for rate in rates)


def _by_team(ledger: LedgerStore) -> dict[str, Sums]:
    with ledger.snapshot() as snapshot:
        names = snapshot.names()
    return {names.teams.get(row.group[0], row.group[0]): row.sums for row in spend(ledger, Query(by=("team",))).rows}
