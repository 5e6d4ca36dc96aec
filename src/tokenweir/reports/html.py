"""The report as one HTML file: it asks no server for anything, runs no script, and can be read, printed and sent as it is.

The rule it protects: what the page shows are the rows of `grouping`, nothing is worked out anew; every figure of a chart stands in a table as well. All text
from transcripts is escaped, and a content security policy forbids what an escape might miss. Change together with `charts.py` and docs/REPORT.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import msgspec

from tokenweir.money import format_usd
from tokenweir.reports.charts import Series, bar, line, share, stacked_columns
from tokenweir.reports.grouping import Cells, Row, Sums, group, total
from tokenweir.reports.style import STYLE

SESSIONS_MAX = 25
PROJECTS_MAX = 15
MODELS_MAX = 6
"""Models that get a colour of their own; the rest share one."""

_CLASSES = (
    ("uncached_input", "Input, not cached"),
    ("cache_write_5m", "Cache write, 5 minutes"),
    ("cache_write_1h", "Cache write, 1 hour"),
    ("cache_read", "Cache read"),
    ("output", "Output"),
)


class Page(msgspec.Struct, frozen=True):
    """What the page says besides the cells."""

    period: str
    """`day`, `week` or `month`: what the cells are cut into."""
    timezone: str
    range_text: str
    made_at: str
    card_version: str
    notes: tuple[str, ...]


def draw_page(cells: Cells, page: Page) -> str:
    """The whole document."""
    sums = total(cells)
    periods = group(cells, [page.period])
    models = sorted(group(cells, ["model"]), key=_dearest)
    body = [_head(sums, page, periods)]
    if not cells.by_label:
        body.append("<section><p>Nothing was used in this time.</p></section>")
    else:
        body += [
            _costs(cells, page, periods, models),
            _cache(periods, page),
            _classes(sums),
            _table("Models", "model", models, sums),
            _table("Projects", "project", sorted(group(cells, ["project"]), key=_dearest), sums, most=PROJECTS_MAX),
            _table("Sessions", "session", sorted(group(cells, ["session"]), key=_dearest), sums, most=SESSIONS_MAX),
            _table(f"By {page.period}", "period", periods, sums, folded=True),
        ]
    if page.notes:
        body.append("<section><h2>What is not certain</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in page.notes) + "</ul></section>")
    body.append(
        f"<footer>Made {escape(page.made_at)} by Tokenweir from local transcripts; rate card {escape(page.card_version)}. List prices of the API, whatever plan "
        "paid for it.</footer>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>Token report · {escape(page.range_text)}</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(sums: Sums, page: Page, periods: Sequence[Row]) -> str:
    mean = sums.cost_nanos // len(periods) if periods else 0
    cards = [
        ("Cost", _usd(sums.cost_nanos), "an estimate in part, see below" if sums.doubts else "exact to the nano-dollar"),
        (f"Per active {page.period}", _usd(mean), f"{len(periods):,} active {page.period}{'' if len(periods) == 1 else 's'}"),
        ("Tokens", _short_count(sums.total), f"{sums.total:,} of all classes"),
        ("Answers", f"{sums.answers:,}", f"{_short_count(sums.output)} tokens of output"),
        ("Read from cache", share(sums.cache_permille), "of all prompt tokens"),
    ]
    drawn = "".join(f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}</dd><p>{escape(text)}</p></div>' for name, value, text in cards)
    return f"<header><h1>Token report</h1><p>{escape(page.range_text)} · {escape(page.timezone)}</p></header><dl class='cards'>{drawn}</dl>"


def _costs(cells: Cells, page: Page, periods: Sequence[Row], models: Sequence[Row]) -> str:
    names = [row.model or "" for row in models]
    shown = names if len(names) <= MODELS_MAX else names[: MODELS_MAX - 1]
    labels = [row.period or "" for row in periods]
    place = {label: index for index, label in enumerate(labels)}
    values = {name: [0] * len(labels) for name in [*shown, *(["others"] if len(names) > len(shown) else [])]}
    for row in group(cells, [page.period, "model"]):
        values[row.model if row.model in values else "others"][place[row.period or ""]] += row.sums.cost_nanos
    series = [Series(name, f"c{index}", tuple(costs)) for index, (name, costs) in enumerate(values.items())]
    legend = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{one.style}" width="10" height="10"/></svg>{escape(one.name)}</li>'
        for one in series
    )
    chart = stacked_columns(labels, series, height=300, text=_usd, title=f"Cost by {page.period} and model")
    return f"<section><h2>Cost by {page.period} and model</h2><div class='scroll'>{chart}</div><ul class='legend'>{legend}</ul></section>"


def _cache(periods: Sequence[Row], page: Page) -> str:
    chart = line(
        [row.period or "" for row in periods],
        [row.sums.cache_permille for row in periods],
        height=170,
        title="Share of prompt tokens read from the cache",
    )
    return (
        f"<section><h2>Read from the cache, by {page.period}</h2><p>The share of prompt tokens that were read from the prompt cache, "
        f"at about a tenth of the price.</p><div class='scroll'>{chart}</div></section>"
    )


def _classes(sums: Sums) -> str:
    most = max(getattr(sums, name) for name, _ in _CLASSES)
    rows = [
        f'<tr><th scope="row">{escape(text)}</th><td class="n">{getattr(sums, name):,}</td><td class="n">{share(_permille(getattr(sums, name), sums.total))}</td>'
        f'<td class="b">{bar(getattr(sums, name), most, "c0")}</td></tr>'
        for name, text in _CLASSES
    ]
    more = [f"{sums.thinking:,} tokens of output were thinking."] if sums.thinking else []
    more += [f"{sums.web_searches:,} web searches."] if sums.web_searches else []
    tail = f"<p>{escape(' '.join(more))}</p>" if more else ""
    head = '<thead><tr><th scope="col">Class</th><th scope="col" class="n">Tokens</th><th scope="col" class="n">Share</th><th></th></tr></thead>'
    return f"<section><h2>Tokens by class</h2><div class='scroll'><table>{head}<tbody>{''.join(rows)}</tbody></table></div>{tail}</section>"


def _table(title: str, label: str, rows: Sequence[Row], sums: Sums, *, most: int | None = None, folded: bool = False) -> str:
    shown = rows[:most]
    dearest = max((row.sums.cost_nanos for row in rows), default=0)
    columns = ("Input", "Write 5m", "Write 1h", "Cache read", "Output", "From cache", "Cost")
    head = "".join(f'<th scope="col" class="n">{name}</th>' for name in columns)
    lines = "".join(_line(str(getattr(row, label) or "-"), row.sums, dearest) for row in shown)
    rest = f"<p>and {len(rows) - len(shown):,} more.</p>" if len(rows) > len(shown) else ""
    table = (
        f"<div class='scroll'><table><thead><tr><th scope='col'>{escape(label.capitalize())}</th>{head}<th></th></tr></thead><tbody>{lines}</tbody>"
        f"<tfoot>{_line('Total', sums, 0)}</tfoot></table></div>{rest}"
    )
    if folded:
        return f"<section><details><summary><h2>{escape(title)}</h2></summary>{table}</details></section>"
    return f"<section><h2>{escape(title)}</h2>{table}</section>"


def _line(name: str, sums: Sums, dearest: int) -> str:
    figures = "".join(f'<td class="n">{getattr(sums, field):,}</td>' for field, _ in _CLASSES)
    mark = '<abbr title="an estimate in part">~</abbr>' if sums.doubts else ""
    drawn = bar(sums.cost_nanos, dearest, "c0") if dearest else ""
    return (
        f'<tr><th scope="row">{escape(name)}</th>{figures}<td class="n">{share(sums.cache_permille)}</td>'
        f'<td class="n">{mark}{escape(_usd(sums.cost_nanos))}</td><td class="b">{drawn}</td></tr>'
    )


def _dearest(row: Row) -> tuple[int, Iterable[str]]:
    return -row.sums.cost_nanos, [row.model or "", row.project or "", row.session or ""]


def _permille(part: int, whole: int) -> int | None:
    return (part * 1_000 + whole // 2) // whole if whole else None


def _usd(nanos: int) -> str:
    return format_usd(nanos)


def _short_count(count: int) -> str:
    """`8.9 billion`, for a figure that stands in full beside it."""
    for size, name in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if count >= size:
            return f"{count // size}.{count * 10 // size % 10} {name}"
    return f"{count:,}"
