"""The demo's screen: usage by team, from the ledger, and how the limits stand, once a second. In a pipe it prints lines now and then instead."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tokenweir.cli.demo_limits import DemoLimits, held_words, resets_words, used_words, waiting_words
from tokenweir.cli.output import note
from tokenweir.ledger.rollups import ZERO, Sums
from tokenweir.ledger_ports import LedgerStore
from tokenweir.limit_ports import LimitRecord
from tokenweir.metering.limit_status import LimitStatus
from tokenweir.metering.spend import Query, spend
from tokenweir.money import format_usd
from tokenweir.periods import Micros
from tokenweir.settings import Settings

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 24
_LINES_EVERY = 5
_FIGURES_WIDE = 76
"""What is left of the terminal is for the course of the requests, if that is enough to see one."""


class Screen:
    """Reads the ledger and the limits, and draws them."""

    def __init__(self, settings: Settings, limits: DemoLimits, *, gateway: str, simulator: str, quiet: bool) -> None:
        from tokenweir import app

        self._ledger = app.open_ledger(settings)
        self._limits = limits
        self._clock = app.SystemClock()
        self._heads = (
            Text.assemble(("Tokenweir", "bold"), f"  gateway {gateway}, simulated API {simulator}"),
            Text("Four teams of simulated programs, three with limits; every figure is read from", style="dim"),
            Text("the ledger and from the limits. Ctrl-C ends the demo.", style="dim"),
        )
        self._rates: dict[str, deque[int]] = {}
        self._before: dict[str, int] = {}
        self._drawn = 0
        self._told: dict[str, str] = {}
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
            self._live.update(self._picture(teams), refresh=True)
        elif not self._quiet and teams and self._drawn % _LINES_EVERY == 0:
            note("  ".join(f"{team} {sums.requests:,} req {format_usd(sums.cost_nanos)}" for team, sums in teams.items()))
            note("  ".join(f"{record.limit.name} {used_words(record, one)}" for record, one in self._limits.read()))
            for team, message in self._limits.told.items() - self._told.items():
                note(f"{team} was told: {message}")
            self._told = dict(self._limits.told)
        self._drawn += 1

    def _picture(self, teams: dict[str, Sums]) -> RenderableType:
        console = self._live.console if self._live is not None else Console()
        return Group(
            *self._heads,
            Text(),
            _table(teams, self._rates, width=console.width),
            Text(),
            _limits_table(self._limits.read(), self._limits, now_us=self._clock.now_us()),
            Text(),
            *(Text(f"{team} was told: {message}", style="yellow") for team, message in sorted(self._limits.told.items())),
        )

    def close(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._live.stop()


def _limits_table(found: list[tuple[LimitRecord, LimitStatus]], limits: DemoLimits, *, now_us: Micros) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("limit", "used", "held", "resets", "refused", "waiting"):
        table.add_column(name, justify="left" if name == "limit" else "right", no_wrap=True)
    for record, one in found:
        full = one.remaining == 0
        table.add_row(
            record.limit.name,
            Text(used_words(record, one), style="red" if full else ""),
            held_words(record, one),
            resets_words(one, now_us),
            f"{limits.refused[record.team]:,}",
            waiting_words(one),
        )
    return table


def _table(teams: dict[str, Sums], rates: dict[str, deque[int]], *, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True, header_style="bold", footer_style="bold")
    totals = sum(teams.values(), start=ZERO)
    columns = {
        "team": "total",
        "requests": f"{totals.requests:,}",
        "errors": f"{totals.errors:,}",
        "prompt": f"{_prompt(totals):,}",
        "from cache": _share(totals),
        "output": f"{totals.output:,}",
        "cost": format_usd(totals.cost_nanos),
        "per second": "",
    }
    history = min(_HISTORY, width - _FIGURES_WIDE)
    if history < len("per second"):
        columns.popitem()
    for name, footer in columns.items():
        table.add_column(name, footer=footer, justify="left" if name in {"team", "per second"} else "right", no_wrap=True)
    for team, sums in sorted(teams.items()):
        row = (
            team,
            f"{sums.requests:,}",
            f"{sums.errors:,}",
            f"{_prompt(sums):,}",
            _share(sums),
            f"{sums.output:,}",
            format_usd(sums.cost_nanos),
            Text(_sparkline(list(rates.get(team, ()))[-history:]), style="cyan"),
        )
        table.add_row(*row[: len(columns)])
    return table


def _prompt(sums: Sums) -> int:
    return sums.uncached_input + sums.cache_write_5m + sums.cache_write_1h + sums.cache_read


def _share(sums: Sums) -> str:
    prompt = _prompt(sums)
    return f"{100 * sums.cache_read // prompt} %" if prompt else "-"


def _sparkline(rates: Sequence[int]) -> str:
    highest = max(rates, default=0)
    return "".join(_BARS[(8 * rate + highest - 1) // highest] if highest else " " for rate in rates)


def _by_team(ledger: LedgerStore) -> dict[str, Sums]:
    with ledger.snapshot() as snapshot:
        names = snapshot.names()
    return {names.teams.get(row.group[0], row.group[0]): row.sums for row in spend(ledger, Query(by=("team",))).rows}
