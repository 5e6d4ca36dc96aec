"""Charts as SVG text, for a page that needs no script and asks no server: stacked columns, a line, and bars for table cells.

The rule it protects: a chart never says more than its numbers. Axes begin at zero, every mark carries its figure as a title, and colours come from the page's
style sheet, so that light and dark are one drawing. Numbers are rounded to a tenth of a pixel, which is drawing, not counting. Change together with `html.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import msgspec

WIDTH = 960
LEFT, RIGHT, TOP, BOTTOM = 64, 8, 12, 28
_LABEL_WIDTH_MIN = 64
"""Room for the label of one column on the time axis."""


class Series(msgspec.Struct, frozen=True):
    """One colour of a stacked chart: a value for every column."""

    name: str
    style: str
    """The class in the style sheet that colours it."""
    values: tuple[int, ...]


def stacked_columns(labels: Sequence[str], series: Sequence[Series], *, height: int, text: Callable[[int], str], title: str) -> str:
    """Columns from zero, one per label, each a stack of the series in their order."""
    totals = [sum(one.values[index] for one in series) for index in range(len(labels))]
    ceiling = nice_ceiling(max(totals, default=0))
    step, thick = _columns(len(labels))
    marks = []
    for index, label in enumerate(labels):
        x = LEFT + index * step + (step - thick) / 2
        below = 0
        parts = []
        for one in series:
            value = one.values[index]
            if value > 0:
                top = _y(below + value, ceiling, height)
                size = _y(below, ceiling, height) - top
                parts.append(
                    f'<rect class="{one.style}" x="{x:.1f}" y="{top:.1f}" width="{thick:.1f}" height="{max(size, 0.6):.1f}">'
                    f"<title>{escape(label)} · {escape(one.name)}: {escape(text(value))}</title></rect>"
                )
                below += value
        marks.append("<g>" + "".join(parts) + "</g>")
    return _frame(labels, ceiling, height, text, title, "".join(marks))


def line(labels: Sequence[str], permille: Sequence[int | None], *, height: int, title: str) -> str:
    """Shares over time, from 0 to 100 %; a gap where there is none."""
    step, _ = _columns(len(labels))
    points: list[list[tuple[float, float]]] = [[]]
    dots = []
    for index, value in enumerate(permille):
        if value is None:
            points.append([])
            continue
        x, y = LEFT + (index + 0.5) * step, _y(value, 1_000, height)
        points[-1].append((x, y))
        dots.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(labels[index])}: {share(value)}</title></circle>')
    paths = "".join('<path class="line" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) + '"/>' for run in points if len(run) > 1)
    return _frame(labels, 1_000, height, lambda value: f"{value // 10} %", title, paths + "".join(dots))


def bar(value: int, most: int, style: str) -> str:
    """A small horizontal bar for a table cell."""
    size = 100 * value / most if most > 0 and value > 0 else 0
    return f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true"><rect class="{style}" width="{size:.1f}" height="8"/></svg>'


def share(permille: int | None) -> str:
    """A share as text: `93.4 %`."""
    return "-" if permille is None else f"{permille // 10}.{permille % 10} %"


def nice_ceiling(value: int) -> int:
    """The least of 1, 2, 2.5, 5 times a power of ten, times four steps, that is not less than `value`; every quarter of it is a round number."""
    power = 4
    while True:
        for tenths in (10, 20, 25, 50):
            if power * tenths // 10 >= value and power * tenths % 10 == 0:
                return power * tenths // 10
        power *= 10


def _frame(labels: Sequence[str], ceiling: int, height: int, text: Callable[[int], str], title: str, marks: str) -> str:
    """Axes, their labels, and the marks on top."""
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for quarter in range(5):
        value = ceiling * quarter // 4
        y = _y(value, ceiling, height)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(text(value))}</text>')
    step, _ = _columns(len(labels))
    every = max(1, -(-_LABEL_WIDTH_MIN // max(1, int(step))))
    parts += (
        f'<text class="tick" x="{LEFT + (index + 0.5) * step:.1f}" y="{height - 8}" text-anchor="middle">{escape(_short(labels[index]))}</text>'
        for index in range(0, len(labels), every)
    )
    return "".join((*parts, marks, "</svg>"))


def _columns(count: int) -> tuple[float, float]:
    """The distance between columns, and how thick one is."""
    step = (WIDTH - LEFT - RIGHT) / max(1, count)
    return step, min(48.0, step * 0.72 if step > 4 else step)


def _y(value: int, ceiling: int, height: int) -> float:
    return height - BOTTOM - (height - TOP - BOTTOM) * value / max(1, ceiling)


def _short(label: str) -> str:
    """A date without its year; weeks and months as they are."""
    return label[5:] if len(label) == len("2026-11-22") and label[4] == label[7] == "-" else label
