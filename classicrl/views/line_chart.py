"""Curves as SVG text, to stand inside a page: polylines with axes, and nothing else.

matplotlib draws pictures for papers (``classicrl plot``), but it is an extra, it writes a megabyte
of paths where a few kilobytes do, and its pictures have fixed colours. These take theirs from the
page (``html_page``), so they follow its light and dark scheme, and are read aloud by name.
"""

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_COLOURS = 6  # that the page's style knows: --series-0 and on
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2", "12 5")  # lines are told apart without colours, too
_MAX_POINTS = 600  # of a line; twice as many as it has pixels to be seen in
_LOG_RATIO = 1e3  # of the largest to the smallest value, from which on the axis is logarithmic


class Line(NamedTuple):
    """One curve.

    Attributes:
        name: in the legend.
        xs, ys: ``[N]`` each; points that are not finite are left out.
        marked: draw the points, too.
        spread: ``[N]``, half the length of a bar at each point; None: no bars.
        colour: index below :data:`NUM_COLOURS`, also of the dashes. None: its place in the chart.
        thin: one of several that belong together.
    """

    name: str
    xs: Floats
    ys: Floats
    marked: bool = False
    spread: Floats | None = None
    colour: int | None = None
    thin: bool = False


class _Axis(NamedTuple):
    low: float
    high: float
    log: bool
    begin: float  # in the picture
    end: float

    def place(self, values: Floats) -> Floats:
        if self.log:
            values = np.log10(np.maximum(values, self.low))
            low, high = math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        share: Floats = (values - low) / (high - low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - first) / 5))
            found = [10.0**power for power in range(first, last + 1, every)]
            return [tick for tick in found if self.low <= tick <= self.high]
        return nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers in ``[low, high]``: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number on an axis: ``20k``, ``1.5M``, ``0.25``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and abs(value) < 1e15:
            return f"{value / size:.4g}{letter}"
    return f"{value + 0.0:.4g}"


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    size: tuple[int, int] = (680, 300),
    y_range: tuple[float, float] | None = None,
) -> str:
    """An ``<svg>`` element; or, where no line has a finite point, a paragraph that says so.

    Args:
        lines: any number.
        title: what is drawn; read aloud, with first, last, smallest and largest value of each line.
        x_label: under the horizontal axis.
        size: width and height, in the units of the picture.
        y_range: values that the vertical axis reaches at least.
    """
    drawn = [_finite(line._replace(colour=_colour(line, i))) for i, line in enumerate(lines)]
    drawn = [line for line in drawn if len(line.xs)]
    if not drawn:
        return '<p class="empty">Nothing was recorded yet.</p>'
    width, height = size
    xs = np.concatenate([line.xs for line in drawn])
    x_axis = _Axis(*_padded(min(0.0, xs.min()), xs.max()), False, 54, width - 14)
    y_axis = _y_axis(drawn, y_range, height)
    parts = [_grid(x_axis, y_axis, size, x_label)]
    for line in drawn:
        parts.append(_drawn(line, x_axis, y_axis))
    log = " The vertical axis is logarithmic." if y_axis.log else ""
    words = escape(" ".join(map(_in_words, drawn)) + log)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}. {words}">'
        f"{''.join(parts)}</svg>"
    )


def legend(lines: Sequence[Line]) -> str:
    """The names of lines beside a piece of each, as an HTML list; lines of one name once."""
    items: dict[str, str] = {}
    for number, line in enumerate(lines):
        colour = _colour(line, number)
        dot = f'<circle cx="14" cy="6" r="3.5" class="s{colour}"/>' if line.marked else ""
        items.setdefault(
            line.name,
            f'<li><svg viewBox="0 0 28 12" aria-hidden="true"><path d="M0 6H28" '
            f'class="line s{colour}"{_dashes(colour)}/>{dot}</svg>{escape(line.name)}</li>',
        )
    return f'<ul class="legend">{"".join(items.values())}</ul>'


def _colour(line: Line, place: int) -> int:
    return (place if line.colour is None else line.colour) % NUM_COLOURS


def _dashes(colour: int) -> str:
    return f' stroke-dasharray="{_DASHES[colour]}"' if _DASHES[colour] else ""


def _finite(line: Line) -> Line:
    # Beyond these no difference of two is finite, or any two are one.
    there = np.isfinite(line.xs) & np.isfinite(line.ys) & (np.abs(line.ys) < 1e150)
    spread = None if line.spread is None else np.nan_to_num(line.spread[there])
    return line._replace(xs=line.xs[there], ys=line.ys[there], spread=spread)


def _padded(low: float, high: float) -> tuple[float, float]:
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    around = 0.5 * abs(high) or 0.5
    return low - around, high + around


def _y_axis(lines: Sequence[Line], y_range: tuple[float, float] | None, height: int) -> _Axis:
    values = np.concatenate(
        [line.ys for line in lines]
        + [line.ys + sign * line.spread for line in lines if line.spread is not None
           for sign in (-1, 1)]
    )  # fmt: skip
    low, high = float(values.min()), float(values.max())
    begin, end = height - 42.0, 12.0
    if y_range is None and low > 0 and high / low >= _LOG_RATIO:
        return _Axis(low / 1.3, high * 1.3, True, begin, end)
    if y_range is not None:
        low, high = min(low, y_range[0]), max(high, y_range[1])
    low, high = _padded(low, high)
    margin = 0.05 * (high - low)
    return _Axis(low - margin, high + margin, False, begin, end)


def _grid(x_axis: _Axis, y_axis: _Axis, size: tuple[int, int], x_label: str) -> str:
    left, right, bottom = x_axis.begin, x_axis.end, y_axis.begin
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.place(np.array([tick]))[0]
        parts.append(
            f'<path class="grid" d="M{left:g} {y:.1f}H{right:g}"/>'
            f'<text x="{left - 7:g}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>'
        )
    at_most = 6 if size[0] > 500 else 4
    for tick in nice_ticks(x_axis.low, x_axis.high, at_most):
        x = x_axis.place(np.array([tick]))[0]
        parts.append(
            f'<path class="grid" d="M{x:.1f} {bottom:g}v5"/><text x="{x:.1f}" '
            f'y="{bottom + 18:g}" text-anchor="middle">{short_number(tick)}</text>'
        )
    middle = (left + right) / 2
    parts.append(
        f'<path class="axis" d="M{left:g} {bottom:g}H{right:g}"/><text x="{middle:g}" '
        f'y="{size[1] - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _drawn(line: Line, x_axis: _Axis, y_axis: _Axis) -> str:
    colour = line.colour or 0
    thin = " thin" if line.thin else ""
    xs, ys = thinned(line.xs, line.ys)
    places = zip(x_axis.place(xs), y_axis.place(ys), strict=True)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line s{colour}{thin}"{_dashes(colour)} points="{points}"/>']
    if line.marked or len(line.xs) == 1:
        spread = np.zeros(len(line.xs)) if line.spread is None else line.spread
        across, up = x_axis.place(line.xs), y_axis.place(line.ys)
        lows, highs = y_axis.place(line.ys - spread), y_axis.place(line.ys + spread)
        for i in range(0, len(line.xs), 1 + len(line.xs) // _MAX_POINTS):
            x = across[i]
            words = f"{line.name}: {line.ys[i]:.4g}"
            if spread[i]:
                words += f" ± {spread[i]:.3g}"
                parts.append(
                    f'<path class="bar s{colour}" d="M{x:.1f} {lows[i]:.1f}V{highs[i]:.1f}"/>'
                )
            words += f" at {line.xs[i]:,.0f}"
            parts.append(
                f'<circle class="s{colour}" cx="{x:.1f}" cy="{up[i]:.1f}" r="3.5">'
                f"<title>{escape(words)}</title></circle>"
            )
    return "".join(parts)


def thinned(xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """At most :data:`_MAX_POINTS` points of a curve: the smallest and the largest of each stretch,
    so that no spike is lost."""
    if len(xs) <= _MAX_POINTS:
        return xs, ys
    kept = []
    ends = np.linspace(0, len(xs), _MAX_POINTS // 2 + 1).astype(int)
    for begin, end in itertools.pairwise(ends):
        stretch = ys[begin:end]
        kept += sorted({begin + int(stretch.argmin()), begin + int(stretch.argmax())})
    return xs[kept], ys[kept]


def _in_words(line: Line) -> str:
    return (
        f"{line.name}: from {line.ys[0]:.4g} at {line.xs[0]:,.0f} to {line.ys[-1]:.4g} at "
        f"{line.xs[-1]:,.0f}, between {line.ys.min():.4g} and {line.ys.max():.4g}."
    )
