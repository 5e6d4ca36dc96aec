"""Grouping: from answers to the rows of a report, by day, week, month, session, project and model, in the calendar of a time zone.

The rule it protects: whatever answers are grouped by, rows add up to the same totals, to the nano-dollar. All are sums of the same cells. Change together with
docs/REPORT.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo
from typing import Any, Final, TypeAlias

import msgspec

from tokenweir.money import Nanos
from tokenweir.periods import QUARTER_US, Micros, to_datetime
from tokenweir.reports.answers import REASONS, UNPRICED, Answer

PERIODS: Final = ("day", "week", "month")
GROUPS: Final = (*PERIODS, "session", "project", "model")
DEFAULT: Final = ("day", "model")
FIGURES: Final = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "thinking", "web_searches")

Label: TypeAlias = str | None


class Sums(msgspec.Struct, gc=False):
    """Figures added up; the only mutable thing here, because millions are added to it."""

    uncached_input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    output: int = 0
    thinking: int = 0
    web_searches: int = 0
    cost_nanos: Nanos = 0
    answers: int = 0
    doubts: int = 0
    """All reasons for which any of it is an estimate."""

    def count(self, answer: Answer) -> None:
        """Take one answer."""
        uncached, write_5m, write_1h, read, output, thinking, searches = answer.counts
        self.uncached_input += uncached
        self.cache_write_5m += write_5m
        self.cache_write_1h += write_1h
        self.cache_read += read
        self.output += output
        self.thinking += thinking
        self.web_searches += searches
        self.cost_nanos += answer.cost_nanos
        self.answers += 1
        self.doubts |= answer.doubts

    def add(self, other: Sums) -> None:
        """Take the figures of another."""
        self.uncached_input += other.uncached_input
        self.cache_write_5m += other.cache_write_5m
        self.cache_write_1h += other.cache_write_1h
        self.cache_read += other.cache_read
        self.output += other.output
        self.thinking += other.thinking
        self.web_searches += other.web_searches
        self.cost_nanos += other.cost_nanos
        self.answers += other.answers
        self.doubts |= other.doubts

    @property
    def prompt(self) -> int:
        """Tokens of all prompts."""
        return self.uncached_input + self.cache_write_5m + self.cache_write_1h + self.cache_read

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt + self.output

    @property
    def cache_permille(self) -> int | None:
        """How much of the prompts was read from the cache, in thousandths; None if there were no prompts."""
        return (self.cache_read * 1_000 + self.prompt // 2) // self.prompt if self.prompt else None


class Row(msgspec.Struct, frozen=True):
    """One line of a report; a label is None if it was not grouped by."""

    period: Label
    model: Label
    project: Label
    session: Label
    sums: Sums


class Doubt(msgspec.Struct, frozen=True):
    """What is an estimate for one reason."""

    reason: int
    answers: int
    cost_nanos: Nanos


class Cells(msgspec.Struct, frozen=True):
    """Answers of a range, at the finest grouping; every table of one report is drawn from the same cells."""

    by_label: dict[tuple[str, str, str, str], Sums]
    """By period, model, project and session."""
    doubts: tuple[Doubt, ...]
    unpriced_models: tuple[str, ...]


def read_groups(text: str) -> tuple[str, ...]:
    """What `--by` names, such as `day,model`; raises ValueError."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in GROUPS]
    if unknown or not names:
        raise ValueError(f"cannot group by {', '.join(unknown) or 'nothing'}; choose from {', '.join(GROUPS)}, or several with commas")
    if len(set(names) & set(PERIODS)) > 1:
        raise ValueError("choose one of day, week and month")
    return names


def fill_cells(answers: Iterable[Answer], *, period: str, zone: tzinfo, since_us: Micros | None = None, until_us: Micros | None = None) -> Cells:
    """Sort the answers of a range into cells; `until_us` is not included."""
    cells: dict[tuple[str, str, str, str], Sums] = {}
    labels: dict[int, str] = {}
    doubts: dict[int, list[int]] = {}
    unpriced: set[str] = set()
    for answer in answers:
        if (since_us is not None and answer.at_us < since_us) or (until_us is not None and answer.at_us >= until_us):
            continue
        # No time zone is offset by a fraction of a quarter of an hour, so the whole quarter has one label.
        quarter = answer.at_us // QUARTER_US
        label = labels.get(quarter)
        if label is None:
            label = labels[quarter] = period_label(answer.at_us, period, zone)
        key = (label, answer.model, answer.project, answer.session)
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = Sums()
        cell.count(answer)
        if answer.doubts:
            for reason in REASONS:
                if answer.doubts & reason:
                    tally = doubts.setdefault(reason, [0, 0])
                    tally[0] += 1
                    tally[1] += answer.cost_nanos
            if answer.doubts & UNPRICED:
                unpriced.add(answer.model)
    return Cells(cells, tuple(Doubt(reason, *doubts[reason]) for reason in sorted(doubts)), tuple(sorted(unpriced)))


def group(cells: Cells, by: Iterable[str]) -> list[Row]:
    """The rows of a table, in the order of their labels."""
    wanted = set(by)
    timed = bool(wanted & set(PERIODS))
    rows: dict[tuple[Label, Label, Label, Label], Sums] = {}
    for (period, model, project, session), sums in cells.by_label.items():
        key = (
            period if timed else None,
            model if "model" in wanted else None,
            project if "project" in wanted else None,
            session if "session" in wanted else None,
        )
        rows.setdefault(key, Sums()).add(sums)
    return [Row(*key, sums) for key, sums in sorted(rows.items(), key=lambda item: tuple(label or "" for label in item[0]))]


def total(cells: Cells) -> Sums:
    """All cells together."""
    sums = Sums()
    for cell in cells.by_label.values():
        sums.add(cell)
    return sums


def figures(sums: Sums) -> dict[str, Any]:
    """The figures of a row, for programs."""
    return {**{name: getattr(sums, name) for name in FIGURES}, "cost_nanos": sums.cost_nanos, "estimated": sums.doubts != 0}


def period_label(at_us: Micros, period: str, zone: tzinfo) -> str:
    """`2026-11-22`, the ISO week `2026-W47`, or `2026-11`."""
    moment = to_datetime(at_us).astimezone(zone)
    if period == "week":
        year, week, _ = moment.isocalendar()
        return f"{year:04}-W{week:02}"
    return f"{moment.year:04}-{moment.month:02}" if period == "month" else f"{moment.year:04}-{moment.month:02}-{moment.day:02}"
