"""The figures of a report, as inline SVG: text in the page's colour, no background, own ids, the same bytes every time."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from . import report_text as text
from .journal import ENTROPY_BIN_BITS, ENTROPY_BINS
from .report_data import Column, Pair

INK = "#012345"  # stands for the page's text colour, which matplotlib has no name for
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

    def __init__(self, names):
        self._index = {name: index for index, name in enumerate(dict.fromkeys(names))}

    def colour(self, name):
        return COLOURS[self._index[name] % len(COLOURS)]

    def marker(self, name):
        index = self._index[name]
        return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # shifts each time the colours begin again


class Canvas:
    """Draws figures for one page, whose ids must not meet."""

    def __init__(self):
        self._drawn = 0

    def _svg(self, figure, label):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=NOTHING)
        self._drawn += 1
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg"):].replace(INK, "currentColor")
        svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would apply to the whole page
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{self._drawn}-", svg)
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
        svg = re.sub(r'<svg [^>]*>', f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" '
                     'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">', svg, count=1)
        return svg.strip()

    def forest(self, pairs: list[Pair], palette):
        """Differences with their intervals, a heading for each task, one unit."""
        lines = []
        for pair in pairs:
            if not lines or lines[-1][1].column.task != pair.column.task:
                lines.append(("task", pair))
            lines.append(("pair", pair))
        unit = pairs[0].column.unit
        scale = 1 if unit == "raw" else 100
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 0.7 + 0.4 * len(lines)))
            axes = figure.subplots()
            left_text = axes.get_yaxis_transform()  # x in the axes, y in data
            for y, (kind, pair) in enumerate(lines):
                if kind == "task":
                    axes.text(0, y + 0.25, pair.column.title, transform=left_text, fontweight="bold")
                    continue
                comparison, colour = pair.comparison, palette.colour(pair.column.method)
                axes.text(0, y - 0.1, pair.column.method, transform=left_text, fontsize=10)
                axes.text(1, y - 0.1, f"{text.distance(comparison.difference, unit, '+')} "
                          f"[{text.distance(comparison.low, unit, '+')}, {text.distance(comparison.high, unit, '+')}]",
                          transform=left_text, fontsize=10, ha="right")
                axes.plot([scale * comparison.low, scale * comparison.high], [y + 0.13] * 2, color=colour, linewidth=2,
                          solid_capstyle="butt")
                axes.plot(scale * comparison.difference, y + 0.13, marker=palette.marker(pair.column.method), color=colour,
                          markersize=7, markerfacecolor=colour if text.significant(pair) else "none", markeredgewidth=1.5)
            axes.axvline(0, color=INK, linewidth=1, alpha=0.6)
            axes.set(ylim=(len(lines) - 0.4, -0.6), yticks=[], xlabel=f"difference from {pairs[0].baseline.method}"
                     + (", points" if unit != "raw" else ""))
            axes.spines["left"].set_visible(False)
            _symmetric_room(axes)
            return self._svg(figure, "Differences from the baseline with 95 % intervals")

    def cost(self, pairs: list[Pair], palette):
        """Accuracy against relative time per token, for one model and task."""
        column, scale = pairs[0].column, 1 if pairs[0].column.unit == "raw" else 100
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 3.1 + 0.1 * len(pairs)))
            axes = figure.subplots()
            baseline = pairs[0].baseline
            axes.plot(1, scale * baseline.mean, color=INK, marker="o", markersize=8, linestyle="none", label=baseline.method)
            for pair in pairs:
                comparison, cost, method = pair.comparison, pair.cost, pair.column.method
                axes.errorbar(cost.value, scale * comparison.treatment,
                              xerr=_around(cost.value, cost, 1), yerr=_around(comparison.difference, comparison, scale),
                              color=palette.colour(method), marker=palette.marker(method), markersize=7, linewidth=1.2,
                              linestyle="none", label=method)
            axes.set(xlabel=f"time per token, relative to {baseline.method}", ylabel=_metric(column), title=column.title)
            _grid(axes)
            figure.legend(loc="outside lower center", ncols=2)
            return self._svg(figure, f"Accuracy against cost on {_attribute(column.title)}")

    def sweep(self, lines: list[list[Column]], option, pairs):
        """The metric against one option, for one model and task; intervals are those of the difference from the baseline."""
        scale = 1 if lines[0][0].unit == "raw" else 100
        by_method = {pair.column.method: pair for pair in pairs}
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 3.0 + 0.15 * len(lines)))
            axes = figure.subplots()
            for index, line in enumerate(lines):
                x = [column.options[option] for column in line]
                comparisons = [by_method[column.method].comparison if column.method in by_method else None for column in line]
                y = [scale * (comparison.treatment if comparison else column.mean)
                     for column, comparison in zip(line, comparisons)]
                around = np.array([_around(comparison.difference, comparison, scale) if comparison else [[0], [0]]
                                   for comparison in comparisons])
                axes.errorbar(x, y, yerr=around[:, :, 0].T, color=COLOURS[index % len(COLOURS)],
                              marker=MARKERS[index % len(MARKERS)], linewidth=1.5, capsize=3,
                              label=_difference_of_lines(line, lines, option))
            if by_method:
                baseline = next(iter(by_method.values())).baseline
                axes.axhline(scale * baseline.mean, color=INK, linestyle="--", linewidth=1, label=baseline.method)
            unit = " (bits)" if option == "threshold" else ""
            axes.set(xlabel=option + unit, ylabel=_metric(lines[0][0]), title=lines[0][0].title)
            _grid(axes)
            figure.legend(loc="outside lower center", ncols=2)
            return self._svg(figure, f"Accuracy against {option} on {_attribute(lines[0][0].title)}")

    def hesitations(self, columns: list[Column], palette):
        """Share of steps that were reframed: bars by task and method, for one model."""
        with matplotlib.rc_context(STYLE):
            figure = Figure((WIDTH, 0.6 + 0.36 * len(columns)))
            axes = figure.subplots()
            left_text = axes.get_yaxis_transform()
            for y, column in enumerate(columns):
                axes.barh(y + 0.2, 100 * column.hesitation_share, height=0.3, color=palette.colour(column.method))
                axes.text(0, y - 0.08, f"{column.title}, {column.method}", transform=left_text, fontsize=10)
                axes.text(1, y - 0.08, f"{100 * column.hesitation_share:.1f} %", transform=left_text, fontsize=10, ha="right")
            axes.set(ylim=(len(columns) - 0.5, -0.5), yticks=[], xlabel="hesitations, % of steps")
            axes.set_xlim(0)
            axes.spines["left"].set_visible(False)
            return self._svg(figure, "Share of hesitations by task")

    def entropies(self, columns: list[Column], palette):
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


def _around(value, interval, scale):
    """The interval's lengths below and above the value; a bootstrap's may lie beside it."""
    return [[scale * max(0.0, value - interval.low)], [scale * max(0.0, interval.high - value)]]


def _metric(column):
    return column.config["metric"] + (", %" if column.unit == "percent" else " × 100" if column.unit == "hundredths" else "")


def _difference_of_lines(line, lines, option):
    """What tells one line of a sweep from the others."""
    def plain(column):
        return {"decoding": column.config.get("decoding"), **column.options}
    different = [key for key, value in plain(line[0]).items()
                 if key not in (option, "seed") and any(plain(other[0]).get(key) != value for other in lines)]
    return ", ".join(f"{key} {plain(line[0])[key]}" for key in different) or "HARP"


def _grid(axes):
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def _symmetric_room(axes):
    reach = max(map(abs, axes.get_xlim()))
    axes.set_xlim(-reach, reach)


def _attribute(title):
    return title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
