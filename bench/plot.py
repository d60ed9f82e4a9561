"""Drawings of results, as SVG: ratios as bars against their targets, and how costs grow as curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from bench.results import Curve, Result, number

__all__ = ["bars", "curves"]

WIDTH = 860
MET, MISSED, INK, PALE = "#2f7d4f", "#b5482f", "#222", "#bbb"


def bars(results: Sequence[Result]) -> str:
    """Draw each ratio of the results as a bar, on a logarithmic axis, with a mark where its target is."""
    targets = [
        (result.row, target)
        for result in results
        for target in result.targets
        if target.at_least and target.unit == "x"
    ]
    left, right, step, top = 290, WIDTH - 70, 30, 34
    found = [value for _, target in targets for value in (target.found, target.bound)]
    low, high = min(0.5, *found, 0.5), max(4.0, *found, 4.0) * 1.1

    def x(value: float) -> float:
        return left + (right - left) * math.log(value / low) / math.log(high / low)

    parts = [_text(x(1), 16, "1 x", anchor="middle"), _line(x(1), 22, x(1), top + step * len(targets), PALE)]
    for place, (row, target) in enumerate(targets):
        y = top + place * step
        colour = MET if target.met else MISSED
        start, end = sorted((x(1), x(target.found)))
        parts += [
            _text(left - 20, y + 14, f"{row}: {target.what}", anchor="end"),
            f'<rect x="{start:.1f}" y="{y + 2}" width="{end - start:.1f}" height="16" fill="{colour}"/>',
            _line(x(target.bound), y - 2, x(target.bound), y + 22, INK, width=2),
            _text(max(end, x(target.bound)) + 6, y + 14, f"{number(target.found)} x", anchor="start"),
        ]
    height = top + step * len(targets) + 30
    parts.append(_text(x(1), height - 10, "black marks: targets; green: met; red: missed", anchor="start"))
    return _svg(height, parts)


def curves(drawn: Sequence[Curve]) -> str:
    """Draw each curve in a frame of its own, both axes logarithmic."""
    across, wide, tall = 3, WIDTH // 3, 190
    parts: list[str] = []
    for place, curve in enumerate(drawn):
        left, top = (place % across) * wide + 50, (place // across) * tall + 34
        parts += _frame(curve, left, top, wide - 75, tall - 80)
    return _svg(-(-len(drawn) // across) * tall, parts)


def _frame(curve: Curve, left: float, top: float, wide: float, tall: float) -> Iterable[str]:
    points = [(x, y) for x, y in curve.points if y > 0]
    yield _text(left - 40, top - 14, f"{curve.name}, {curve.y}", anchor="start", weight="bold")
    yield f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="{PALE}"/>'
    if not points:
        return
    (low_x, high_x), (low_y, high_y) = _range([x for x, _ in points]), _range([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + wide * math.log(x / low_x) / math.log(high_x / low_x),
            top + tall - tall * math.log(y / low_y) / math.log(high_y / low_y),
        )

    placed = [at(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    yield f'<polyline points="{path}" fill="none" stroke="{MET}" stroke-width="2"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{MET}"/>' for x, y in placed)
    for (value_x, value_y), (x, _) in ((points[0], placed[0]), (points[-1], placed[-1])):
        yield _text(x, top + tall + 15, f"{value_x:,.0f}", anchor="middle")
        height = at(value_x, value_y)[1]
        yield _text(x + (8 if x < left + wide / 2 else -8), height - 6, number(value_y), anchor=_side(x, left, wide))
    yield _text(left + wide / 2, top + tall + 29, curve.x, anchor="middle")


def _side(x: float, left: float, wide: float) -> str:
    return "start" if x < left + wide / 2 else "end"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return low / 1.3, high * 1.6


def _text(x: float, y: float, text: str, *, anchor: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, width: int = 1) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _svg(height: float, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([f"{head} {style}>", ground, *parts, "</svg>", ""])
