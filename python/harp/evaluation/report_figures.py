"""The figures of a report as inline SVG: text in the page's colour, no background, unique ids, the same bytes every time."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import report_text as text
from .journal import ENTROPY_BIN_BITS, ENTROPY_BINS
from .report_curves import Curves
from .report_data import Column, Pair
from .statistics import Comparison, Estimate

INK = "#012345"  # a placeholder for the page's text colour, which matplotlib cannot name
# Legible on white and on black.
COLOURS = ("#2f86d6", "#d9730d", "#25a06a", "#c2559d", "#8a7ae0", "#b08b00", "#d94f4f", "#4aa3a8")
MARKERS = "osD^vPX*"
WIDTH = 5.2  # inches; 374 units of the SVG, about a phone's width
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "harp", "text.parse_math": False, "font.family": "sans-serif", "font.size": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11.5,
    "legend.frameon": False, "legend.fontsize": 10, "figure.constrained_layout.use": True,
}
NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))


class Palette:
    """One colour and marker for each method, or task, throughout a report."""

    def __init__(self, names: Iterable[str]):
        self._index = {name: index for index, name in enumerate(dict.fromkeys(names))}

    def colour(self, name: str) -> str:
        return COLOURS[self._index[name] % len(COLOURS)]

    def marker(self, name: str) -> str:
        index = self._index[name]
        return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # shifts each time the colours begin again


class Canvas:
    """Draws figures for one page; ids of different figures differ."""

    def __init__(self):
        self._drawn = 0

    def _svg(self, figure: Figure, label: str) -> str:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NOTHING)
        self._drawn += 1
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg"):].replace(INK, "currentColor")
        svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{self._drawn}-", svg)
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
        svg = re.sub(r'<svg [^>]*>', f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" '
                     'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1)
        return svg.strip()

    def forest(self, pairs: list[Pair], palette: Palette) -> str:
        """Differences with their intervals, with a heading for each task. All pairs have the same unit."""
        unit = pairs[0].column.unit
        scale = 1 if unit == "raw" else 100
        with matplotlib.rc_context(STYLE):
            figure, axes, rows = _rows(pairs, lambda pair: pair.column, 0.4)
            for y, pair in rows:
                comparison, colour = pair.comparison, palette.colour(pair.column.method)
                _beside_name(axes, y - 0.1, pair.column.method, f"{text.distance(comparison.difference, unit, '+')} "
                             f"[{text.distance(comparison.low, unit, '+')}, {text.distance(comparison.high, unit, '+')}]")
                axes.plot([scale * comparison.low, scale * comparison.high], [y + 0.13] * 2, color=colour, linewidth=2,
                          solid_capstyle="butt")
                axes.plot(scale * comparison.difference, y + 0.13, marker=palette.marker(pair.column.method), color=colour,
                          markersize=7, markerfacecolor=colour if text.significant(pair) else "none", markeredgewidth=1.5)
                axes.plot([0, 0], [y + 0.02, y + 0.31], color=INK, linewidth=1, alpha=0.6)  # does not cross the names
            axes.set_xlabel(f"difference from {pairs[0].baseline.method}" + (", points" if unit != "raw" else ""))
            _symmetric_room(axes)
            return self._svg(figure, "Differences from the baseline with 95 % intervals")

    def cost(self, pairs: list[Pair], palette: Palette) -> str:
        """Accuracy against relative time per token, for one model and task."""
        column, scale = pairs[0].column, 1 if pairs[0].column.unit == "raw" else 100
        baseline = pairs[0].baseline
        legend = _Legend([baseline.method, *(pair.column.method for pair in pairs)])
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 3.0 + legend.height))
            axes = figure.subplots()
            axes.plot(1, scale * baseline.mean, color=INK, marker="o", markersize=8, linestyle="none", label=baseline.method)
            for pair in pairs:
                comparison, cost, method = pair.comparison, pair.cost, pair.column.method
                axes.errorbar(cost.value, scale * comparison.treatment,
                              xerr=_around(cost.value, cost, 1), yerr=_around(comparison.difference, comparison, scale),
                              color=palette.colour(method), marker=palette.marker(method), markersize=7, linewidth=1.2,
                              linestyle="none", label=method)
            axes.set(xlabel=f"time per token, relative to {baseline.method}", ylabel=_metric(column), title=column.title)
            _grid(axes)
            legend.put(figure)
            return self._svg(figure, f"Accuracy against cost on {_attribute(column.title)}")

    def curves(self, curves: Curves, pairs: list[Pair]) -> str:
        """Differences from the baseline as a function of one option, a line for each setting of the others, the metric on the right.

        `pairs` are those of the model and task. If there are none, the metric itself is drawn, without bands.
        """
        first = curves.lines[0].columns[0]
        scale = 1 if first.unit == "raw" else 100
        comparisons = {pair.column.method: pair.comparison for pair in pairs}
        baseline = f"{pairs[0].baseline.method}, {text.value(pairs[0].baseline.mean, first.unit)}" if pairs else ""
        legend = _Legend([baseline, *(line.label for line in curves.lines)])
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 3.3 + legend.height))
            axes = figure.subplots()
            if pairs:
                axes.axhline(0, color=INK, linestyle="--", linewidth=1, label=baseline)
            for index, line in enumerate(curves.lines):
                x = [column.options[curves.option] for column in line.columns]
                bands = scale * np.array([_band(column, comparisons.get(column.method), pairs) for column in line.columns])
                colour, below = COLOURS[index % len(COLOURS)], min(4, len(curves.lines) - 1 - index)
                axes.fill_between(x, bands[:, 1], bands[:, 2], facecolor=colour, alpha=0.15, linewidth=0)
                # Lines drawn first are wider, so that lines that coincide are all visible.
                axes.plot(x, bands[:, 0], color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4.5 + 1.5 * below,
                          linewidth=1.3 + below, label=line.label)
            unit = " (bits)" if curves.option == "threshold" and first.options.get("gate", "entropy") == "entropy" else ""
            title = "\n".join([first.title, *textwrap.wrap(curves.second_pass, 60)])
            axes.set(xlabel=curves.option + unit, title=title)
            _mark(axes, [column.options[curves.option] for line in curves.lines for column in line.columns])
            _scales(axes, first, pairs)
            _grid(axes)
            legend.put(figure)
            return self._svg(figure, _attribute(f"Results against {curves.option}: {title}"))

    def hesitations(self, columns: list[Column], palette: Palette) -> str:
        """Share of steps that hesitated: bars by task and method, for one model."""
        with matplotlib.rc_context(STYLE):
            figure, axes, rows = _rows(columns, lambda column: column, 0.36)
            for y, column in rows:
                axes.barh(y + 0.2, 100 * column.hesitation_share, height=0.3, color=palette.colour(column.method))
                _beside_name(axes, y - 0.08, column.method, f"{100 * column.hesitation_share:.1f} %")
            axes.set_xlabel("hesitations, % of steps")
            axes.set_xlim(0)
            return self._svg(figure, "Share of hesitations by task")

    def entropies(self, columns: list[Column], palette: Palette) -> str:
        """Histograms of the entropy at each step, a line for each task, for one model."""
        edges = ENTROPY_BIN_BITS * np.arange(ENTROPY_BINS + 1)
        last = max(int(np.flatnonzero(column.entropies)[-1]) for column in columns) + 1
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 3.0 + 0.1 * len(columns)))
            axes = figure.subplots()
            for column in columns:
                axes.stairs(100 * column.entropies[:last] / column.entropies.sum(), edges[:last + 1], baseline=None,
                            linewidth=1.5, color=palette.colour(column.task), label=column.title)
            axes.set(xlabel="entropy of the next token, bits", ylabel="% of steps (log)", yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlim(0)
            _grid(axes)
            figure.legend(loc="outside lower center", ncols=2)
            return self._svg(figure, "Histograms of entropy by task")


class _Legend:
    """A legend below a figure, in a size that fits its longest label."""

    def __init__(self, labels: list[str]):
        longest = max(map(len, labels))
        self._columns = 2 if longest <= 30 else 1
        self._size = min(10.0, 600 / longest)
        self.height = 0.2 * math.ceil(len(labels) / self._columns)  # inches

    def put(self, figure: Figure) -> None:
        figure.legend(loc="outside lower center", ncols=self._columns, fontsize=self._size)


def _rows(items: list, column_of: Callable[[Any], Column], height: float) -> tuple[Figure, Axes, list[tuple[int, Any]]]:
    """A figure with a row, `height` inches high, for each item and for a heading above each task; also (y, item) of the items' rows."""
    rows, headings = [], []
    for item in items:
        if not rows or column_of(rows[-1][1]).task != column_of(item).task:
            headings.append((len(rows) + len(headings), column_of(item).title))
        rows.append((len(rows) + len(headings), item))
    n = len(rows) + len(headings)
    figure = Figure((WIDTH, 0.7 + height * n))
    axes = figure.subplots()
    for y, title in headings:
        axes.text(0, y + 0.25, title, transform=axes.get_yaxis_transform(), fontweight="bold")
    axes.set(ylim=(n - 0.4, -0.6), yticks=[])
    axes.spines["left"].set_visible(False)
    return figure, axes, rows


def _beside_name(axes: Axes, y: float, name: str, numbers: str) -> None:
    """A row's name on the left, small enough to leave room for its numbers on the right."""
    name = text.cut(name, 80)
    room = 64 - len(numbers)  # characters of size 10
    place = axes.get_yaxis_transform()  # x in the axes, y in data
    axes.text(0, y, name, transform=place, fontsize=min(10.0, 10 * room / len(name)))
    axes.text(1, y, numbers, transform=place, fontsize=10, ha="right")


def _band(column: Column, comparison: Comparison | None, pairs: list[Pair]) -> tuple[float, float, float]:
    """The difference from the baseline with the ends of its interval; only the metric if there is no comparison."""
    if comparison is None:
        return ((column.mean or 0) - (pairs[0].baseline.mean if pairs else 0),) * 3
    return comparison.difference, comparison.low, comparison.high


def _mark(axes: Axes, values: list[float]) -> None:
    """Puts ticks at these values if they are few and far enough apart."""
    marks = sorted(set(values))
    if len(marks) <= 9 and np.diff(marks).min(initial=math.inf) >= 0.07 * (marks[-1] - marks[0]):
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])


def _scales(axes: Axes, column: Column, pairs: list[Pair]) -> None:
    """Puts differences on the left axis and the metric on the right one, which ends at the metric's limits."""
    if not pairs:
        axes.set_ylabel(_metric(column))
        return
    scale, baseline = 1 if column.unit == "raw" else 100, pairs[0].baseline
    axes.set_ylabel(f"difference from {baseline.method}" + (", points" if column.unit != "raw" else ""))
    mean = scale * baseline.mean
    right = axes.secondary_yaxis("right", functions=(lambda difference: difference + mean, lambda value: value - mean))
    right.set_ylabel(_metric(column))
    if column.unit != "raw":
        right.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if 0 <= value <= 100 else "")


def _around(value: float, interval: Comparison | Estimate, scale: float) -> list[list[float]]:
    """The interval's lengths below and above the value, at least 0: a bootstrap interval need not contain the value."""
    return [[scale * max(0.0, value - interval.low)], [scale * max(0.0, interval.high - value)]]


def _metric(column: Column) -> str:
    return column.config["metric"] + (", %" if column.unit == "percent" else " × 100" if column.unit == "hundredths" else "")


def _grid(axes: Axes) -> None:
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def _symmetric_room(axes: Axes) -> None:
    reach = max(map(abs, axes.get_xlim()))
    axes.set_xlim(-reach, reach)


def _attribute(title: str) -> str:
    return title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;").replace("\n", ", ")
