"""Plots of figures as SVG: bars on one scale, with the range of the rounds and a line where a bar must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _NUMBERS, _ROW, _TOP = 960, 430, 150, 30, 52
_OURS, _OTHERS, _SHORT, _INK = "#2f6f9f", "#9aa5ad", "#c2552d", "#1f2a30"
_STYLE = f"font-family:DejaVu Sans,Verdana,sans-serif;font-size:13px;fill:{_INK}"


@dataclass(frozen=True)
class Bar:
    """A value with the lowest and highest of its rounds. *reach*: where it must get, if anywhere. *is_ours*: or stands
    beside for comparison."""

    label: str
    low: float
    value: float
    high: float
    reach: float | None = None
    is_reached: bool | None = None
    is_ours: bool = True


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """An SVG of *rows*, one under the other."""
    most = max(max(row.high, row.reach or 0) for row in rows) or 1
    scale = (_WIDTH - _LABELS - _NUMBERS) / most
    drawn = "".join(_row(row, _TOP + number * _ROW, scale, unit) for number, row in enumerate(rows))
    height = _TOP + len(rows) * _ROW + 34
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' role="img" style="{_STYLE}"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="14" y="28" font-size="16" font-weight="bold">{escape(title)}</text>{drawn}'
        f'<text x="14" y="{height - 12}" font-size="11">bar: median; thin line: lowest and highest round; '
        f"dashed: what must be reached</text></svg>\n"
    )


def _row(row: Bar, top: float, scale: float, unit: str) -> str:
    middle, colour = top + 11, _colour(row)
    parts = [
        f'<text x="{_LABELS - 10}" y="{middle + 4}" text-anchor="end">{escape(row.label)}</text>',
        f'<rect x="{_LABELS}" y="{top}" width="{row.value * scale:.1f}" height="22" fill="{colour}"/>',
        _line(_LABELS + row.low * scale, middle, _LABELS + row.high * scale, middle, _INK),
    ]
    end = row.high
    if row.reach is not None:
        at, end = _LABELS + row.reach * scale, max(end, row.reach)
        parts.append(_line(at, top - 3, at, top + 25, _INK, 'stroke-dasharray="4 3"'))
    parts.append(
        f'<text x="{_LABELS + end * scale + 8:.1f}" y="{middle + 4}">{number(row.value)} {escape(unit)}</text>'
    )
    return "".join(parts)


def _colour(row: Bar) -> str:
    if not row.is_ours:
        return _OTHERS
    return _SHORT if row.is_reached is False else _OURS


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.5" {more}/>'
    )


def number(value: float) -> str:
    """As many digits as a reader needs: 12,345 or 12.3 or 0.123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
