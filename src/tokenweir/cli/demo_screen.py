"""The demo's screen: usage by team, from the ledger, once a second. In a pipe it prints a line now and then instead."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tokenweir.cli.output import note
from tokenweir.money import format_usd
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
            rate.append(sums["requests"] - self._before.get(team, 0))
            self._before[team] = sums["requests"]
        if self._live is not None:
            self._live.update(Group(*self._heads, _table(teams, self._rates)), refresh=True)
        elif not self._quiet and teams and self._drawn % _LINES_EVERY == 0:
            note("  ".join(f"{team} {sums['requests']:,} req {format_usd(sums['cost_nanos'])}" for team, sums in teams.items()))
        self._drawn += 1

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.stop()


def _table(teams: dict[str, dict[str, int]], rates: dict[str, deque[int]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True)
    totals: dict[str, int] = {}
    for sums in teams.values():
        for name, amount in sums.items():
            totals[name] = totals.get(name, 0) + amount
    columns = {
        "team": "total",
        "requests": f"{totals.get('requests', 0):,}",
        "refused": f"{totals.get('errors', 0):,}",
        "prompt": f"{_prompt(totals):,}",
        "from cache": _share(totals),
        "output": f"{totals.get('output', 0):,}",
        "cost": format_usd(totals.get("cost_nanos", 0)),
        "requests per second": "",
    }
    for name, footer in columns.items():
        table.add_column(name, footer=footer, justify="left" if name in {"team", "requests per second"} else "right", no_wrap=True)
    for team, sums in sorted(teams.items()):
        table.add_row(
            team,
            f"{sums['requests']:,}",
            f"{sums['errors']:,}",
            f"{_prompt(sums):,}",
            _share(sums),
            f"{sums['output']:,}",
            format_usd(sums["cost_nanos"]),
            Text(_sparkline(rates.get(team, deque())), style="cyan"),
        )
    return table


def _prompt(sums: dict[str, int]) -> int:
    return sum(sums.get(name, 0) for name in ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read"))


def _share(sums: dict[str, int]) -> str:
    prompt = _prompt(sums)
    return f"{100 * sums['cache_read'] // prompt} %" if prompt else "–"


def _sparkline(rates: deque[int]) -> str:
    highest = max(rates, default=0)
    return "".join(_BARS[(8 * rate + highest - 1) // highest] if highest else " " for rate in rates)


def _by_team(ledger: Any) -> dict[str, dict[str, int]]:
    raise NotImplementedError
