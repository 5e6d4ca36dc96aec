"""The demo's screen fits the terminals that people have."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace

import pytest
from rich.console import Console

from tokenweir.cli.demo_limits import LIMITS
from tokenweir.cli.demo_screen import _limits_table, _table
from tokenweir.ledger.rollups import Sums
from tokenweir.limit_ports import LimitRecord
from tokenweir.limits.limit import Limit, Resource, Rolling, Scope
from tokenweir.metering.limit_status import LimitStatus
from tokenweir.metering.waiting import LimitWaits
from tokenweir.simulator.programs import PROGRAMS

NOW_US = 1_795_000_000_000_000
LONG = NOW_US + 28 * 86_400_000_000 + 23 * 3_600_000_000


@pytest.mark.parametrize("width", [80, 85, 86, 100, 160])
def test_no_figure_is_cut_off(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115 - nobody reads it
    sums = Sums(requests=2_500, errors=99, uncached_input=20_123_456, cache_read=4_000_000, output=412_345, cost_nanos=24 * 10**9)
    console.print(_table({program.team: sums for program in PROGRAMS}, {program.team: deque([1, 2] * 12) for program in PROGRAMS}, width=width))
    records = [
        LimitRecord(Limit("limit_1", one["name"], Scope("o"), Resource(one["resource"]), 1, Rolling(1)), "default", one["team"]) for one in LIMITS
    ]
    standings = [
        LimitStatus("limit_1", "", 1, 950_000, 949_999, 12_345, 1, LONG),
        LimitStatus("limit_1", "", 18, 18, 18, 0, None, NOW_US + 9_999_999),
        LimitStatus("limit_1", "", 1, 1, 0, 1, None, None, LimitWaits(waiting=3, p95_us=12_345_678)),
    ]
    limits = SimpleNamespace(refused=Counter(support=1_234))
    console.print(_limits_table(list(zip(records, standings, strict=True)), limits, now_us=NOW_US))
    text = console.export_text()
    console.file.close()
    assert "…" not in text
    assert {"1,649,380", "949,999 of 950,000", "28d 23h", "1,234", "3, p95 12.3s", "1 of 1"} <= {
        word for word in text.replace("  ", "\n").split("\n") for word in [word.strip()]
    }
    assert ("per second" in text) == (width >= 86)
